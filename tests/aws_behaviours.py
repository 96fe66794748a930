"""Which behaviour tests run over the aws provider too, where each message takes moto 6 ms and many processes share its one.

What the core does with any provider is shown by the others; these are the ones in which it meets what is different here: no counts,
no order, mailboxes, patterns by a topic for everything, leases in whole seconds. `PYMQ_AWS_ALL=1` runs all; of those that are not
listed some ask for what AWS's Features do not promise (order, exact maxsize, counts, a death that is seen in 0.1 s, 64 MiB).
"""

from __future__ import annotations

BEHAVIOURS = {
    "test_events": """
        test_an_event_reaches_every_subscriber_of_its_class test_subclasses_arrive_as_themselves
        test_an_event_comes_once_per_handler_however_many_ways_lead_there
        test_a_base_class_does_not_reach_the_handlers_of_its_subclasses test_a_class_can_name_its_channel
        test_an_explicit_channel_replaces_the_class test_a_pattern_and_a_channel_of_the_same_name_are_two_things
        test_headers_and_everything_else_a_message_tells test_async_handlers test_several_handlers_on_a_channel
        test_unsubscribe_inside_a_handler test_a_subscription_can_be_made_inside_a_handler test_topics
        test_a_sibling_is_called_though_a_handler_raised test_a_handler_may_put_and_call
    """,
    "test_groups": """
        test_each_event_goes_to_one_member test_the_members_of_several_groups_and_plain_subscribers
        test_a_group_survives_without_any_process test_delete test_the_lease_is_extended_while_the_handler_runs
        test_a_failing_event_is_retried_and_then_dead test_reject_goes_straight_to_the_dead_letters test_retry_is_no_failure
        test_requeue_brings_the_dead_back test_take_acks_when_the_block_ends_well test_take_gives_back_when_the_block_raises
        test_a_lost_lease test_a_delayed_event test_an_expired_event
    """,
    "test_queues": """
        test_it_is_a_queue test_sizes test_empty test_full test_an_item_goes_to_one_consumer
        test_items_wait_while_no_process_is_attached test_a_blocked_get_wakes test_free_wakes_who_waits
        test_names_are_not_paths_and_never_meet test_shutdown_ends_a_blocked_get test_a_delayed_item_comes_when_it_is_due
    """,
    "test_rpc": """
        test_a_call_by_name test_async_remotes test_a_remote_exception_tells_all test_nobody_serves test_nobody_serves_any_more
        test_a_deadline test_an_expired_request_is_not_executed test_one_live_server_executes_a_call test_multi_asks_everybody
        test_multi_returns_the_results_there_are test_a_remote_may_call_a_remote_of_its_own_process
        test_two_processes_may_call_each_other test_every_thread_gets_its_own_answer
    """,
    "test_asyncio_queues": "test_between_a_loop_and_a_process test_taken_items",
    "test_asyncio_calls": "test_a_call_of_another_process test_served_by_a_loop",
}


def runs_on_aws(module: str, test: str) -> bool:
    """Whether it is one of them."""
    return test in BEHAVIOURS.get(module, "").split()
