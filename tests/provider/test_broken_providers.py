"""The suite can fail: for each of its tests there is a provider that breaks exactly that promise."""

from __future__ import annotations

import dataclasses
import itertools
import os
import secrets
import time
from collections import defaultdict
from queue import Full

import pytest
from over_socket import Server, SocketConfig

from pymq.exceptions import LeaseLost, ProviderError, PublishFull, PymqError
from pymq.provider._memory import Inbox, MemoryReadiness, SharedQueue
from pymq.provider.base import LATER, Receipt
from pymq.provider.simple import SimpleConfig, SimpleProvider
from pymq.testing import ProviderSuite

BROKEN = []


def fails(*tests):
    """The suite's tests that this provider must fail."""

    def register(broken):
        BROKEN.extend((broken, test) for test in tests)
        return broken

    return register


# ---- open, close, declare, delete -----------------------------------------------------------------------------------------


@fails("test_close_may_come_twice_and_from_any_thread")
class ClosesOnce(SimpleProvider):
    def close(self):
        assert self._is_open
        super().close()


@fails("test_close_ends_every_blocked_receive", "test_wake_ends_every_blocked_receive_and_loses_nothing")
class DoesNotWake(SimpleProvider):
    def wake(self):
        pass


@fails(
    "test_close_removes_its_temporary_queues_and_no_others",
    "test_a_watching_receive_ends_when_the_watched_queue_does",
    "test_consumers_are_the_live_temporary_queues_of_exactly_this_topic",
)
class LeavesItsInboxes(SimpleProvider):
    def close(self):
        self.wake()


@fails("test_close_removes_its_temporary_queues_and_no_others")
class TakesOthersInboxesAlong(SimpleProvider):
    def _leave(self):
        for name, queue in list(self._broker.queues.items()):
            if isinstance(queue, Inbox):
                self._broker.remove(name)
        super()._leave()


@fails("test_declare_is_idempotent_and_keeps_messages")
class DeclaresAnew(SimpleProvider):
    def declare(self, queue, *, temporary=False):
        self.delete(queue)
        super().declare(queue, temporary=temporary)


@fails(
    "test_a_shared_queue_keeps_messages_while_nobody_is_attached",
    "test_a_bound_queue_collects_while_nobody_is_attached",
    "test_a_shared_queue_outlives_the_process_that_filled_it",
)
class DeletesWhatItLeaves(SimpleProvider):
    def _leave(self):
        for name in list(self._broker.queues):
            self._broker.remove(name)
        super()._leave()


@fails("test_delete_removes_messages_and_bindings")
class KeepsBindingsOfTheDeleted(SimpleProvider):
    def delete(self, queue):
        bindings = self._broker.bindings.of(queue)
        super().delete(queue)
        for binding in bindings:
            self._broker.bindings.bind(*binding)


@fails("test_delete_removes_messages_and_bindings")
class DeletesOnlyBindings(SimpleProvider):
    def delete(self, queue):
        self._broker.bindings.drop(queue)


@fails("test_delete_ignores_what_does_not_exist")
class DeletesOnce(SimpleProvider):
    def delete(self, queue):
        self._broker.find(queue)
        super().delete(queue)


@fails(
    "test_delete_ends_blocked_receives_with_an_error",
    "test_delete_ends_a_blocked_send_with_an_error",
    "test_a_receipt_of_a_deleted_queue_settles_nothing",
)
class DeletesSilently(SimpleProvider):
    def delete(self, queue):
        self._broker.queues.pop(queue, None)


@fails("test_an_unknown_queue_is_an_error_and_has_no_size")
class DeclaresOnUse(SimpleProvider):
    def send(self, queue, message, **options):
        self.declare(queue)
        super().send(queue, message, **options)


@fails("test_all_have_the_same_clock", "test_another_process_has_the_same_clock")
class HasAClockOfItsOwn(SimpleProvider):
    def __init__(self, config):
        super().__init__(config)
        made = time.monotonic()
        self.clock = lambda: time.monotonic() - made


@fails("test_all_have_the_same_clock")
class CountsMilliseconds(SimpleProvider):
    clock = staticmethod(lambda: time.monotonic() / 1000)


@fails("test_its_health_is_told")
class HasAnotherWordForIt(SimpleProvider):
    def health(self):
        return dataclasses.replace(super().health(), state="ok")


@fails("test_its_health_is_told")
class HasWorkedSinceTheBoot(SimpleProvider):
    def health(self):
        return dataclasses.replace(super().health(), since=time.monotonic())


# ---- names ----------------------------------------------------------------------------------------------------------------


class Renames(SimpleProvider):
    """Every name of a queue, in every call."""

    def declare(self, queue, **options):
        super().declare(self.named(queue), **options)

    def delete(self, queue):
        super().delete(self.named(queue))

    def send(self, queue, message, **options):
        super().send(self.named(queue), message, **options)

    def receive(self, queue, timeout=0, **options):
        return super().receive(self.named(queue), timeout, **options)


@fails("test_every_name_is_a_queue_of_its_own")
class IgnoresCase(Renames):
    def named(self, queue):
        return queue.lower()


@fails("test_every_name_is_a_queue_of_its_own")
class CutsNames(Renames):
    def named(self, queue):
        return queue[:64]


@fails("test_every_name_is_a_queue_of_its_own")
class EndsNamesAtNul(Renames):
    def named(self, queue):
        return queue.partition("\0")[0]


@fails("test_every_name_is_a_queue_of_its_own")
class RefusesSlashes(Renames):
    def named(self, queue):
        if "/" in queue:
            raise ProviderError("no path, please")
        return queue


class RenamesTopics(SimpleProvider):
    def bind(self, queue, pattern, *, exact):
        super().bind(queue, self.named(pattern), exact=exact)

    def publish(self, topics, message, **options):
        return super().publish([self.named(topic) for topic in topics], message, **options)

    def consumers(self, topic):
        return super().consumers(self.named(topic))


@fails("test_every_name_is_a_topic_of_its_own")
class HasAsciiTopics(RenamesTopics):
    def named(self, topic):
        return topic.encode("ascii", "replace").decode()


@fails("test_every_name_is_a_topic_of_its_own")
class RefusesNulInTopics(RenamesTopics):
    def named(self, topic):
        if "\0" in topic:
            raise ProviderError("a NUL")
        return topic


@fails("test_the_shared_queues_are_listed_by_what_their_names_begin_with")
class ListsNothing(SimpleProvider):
    def queues(self, prefix):
        return []


@fails("test_the_shared_queues_are_listed_by_what_their_names_begin_with")
class ListsInboxesToo(SimpleProvider):
    def queues(self, prefix):
        return [name for name in self._broker.queues if name.startswith(prefix)]


@fails("test_the_shared_queues_are_listed_by_what_their_names_begin_with")
class ListsWhateverContainsIt(SimpleProvider):
    def queues(self, prefix):
        return [name for name in super().queues("") if prefix in name]


# ---- send and receive -----------------------------------------------------------------------------------------------------


@fails("test_first_in_first_out", "test_each_senders_order_is_kept")
class SwapsNeighbours(SimpleProvider):
    def _swap(self):
        for queue in list(self._broker.queues.values()):
            if isinstance(queue, Inbox):
                queue._messages[-2:] = queue._messages[:-3:-1]

    def send(self, queue, message, **options):
        super().send(queue, message, **options)
        self._swap()

    def publish(self, topics, message, **options):
        with self._broker.lock:
            count = super().publish(topics, message, **options)
            self._swap()
            return count


@fails("test_first_in_first_out")
class LosesSome(SimpleProvider):
    def send(self, queue, message, **options):
        if not message.endswith(b"7"):
            super().send(queue, message, **options)


@fails("test_a_temporary_queue_returns_all_that_has_come")
class ReturnsSomeOfIt(SimpleProvider):
    def receive(self, queue, timeout=0, **options):
        return super().receive(queue, timeout, **options)[:5]


@fails("test_a_temporary_queue_returns_all_that_has_come")
class SeesOnlyTheNextInAnInbox(SimpleProvider):
    def size(self, queue):
        return min(1, super().size(queue)) if isinstance(self._broker.queues[queue], Inbox) else super().size(queue)


@fails("test_a_shared_queue_returns_at_most_limit")
class IgnoresLimit(SimpleProvider):
    def receive(self, queue, timeout=0, *, limit=1, **options):
        return super().receive(queue, timeout, limit=100, **options)


@fails(
    "test_receive_waits_as_long_as_it_is_told",
    "test_a_blocked_receive_gets_what_is_sent",
    "test_publish_wakes_a_blocked_receive",
    "test_a_blocked_receive_of_another_process_is_woken",
)
class NeverWaits(SimpleProvider):
    def receive(self, queue, timeout=0, **options):
        return super().receive(queue, 0, **options)


@fails("test_any_bytes_of_any_size", "test_messages_of_another_process_arrive")
class Truncates(SimpleProvider):
    def send(self, queue, message, **options):
        super().send(queue, message[:65536], **options)


@fails("test_any_bytes_of_any_size")
class TruncatesWhatIsPublished(SimpleProvider):
    def publish(self, topics, message, **options):
        return super().publish(topics, message[:65536], **options)


@fails(
    "test_a_message_that_is_too_large_is_refused_before_anything_is_written",
    "test_what_is_beyond_the_features_is_a_clear_error",
)
class TakesAnything(SimpleProvider):
    def _checked(self, message, delay, priority=0):
        return message


@fails("test_a_message_that_is_too_large_is_refused_before_anything_is_written")
class RefusesTooLate(SimpleProvider):
    def send(self, queue, message, **options):
        with self._broker.lock:
            self._broker.find(queue).offer(message, self)
        super().send(queue, message, **options)


# ---- maxsize, delay, ttl, priority ----------------------------------------------------------------------------------------


@fails("test_a_full_queue_refuses_after_its_timeout")
class IgnoresMaxsize(SimpleProvider):
    def send(self, queue, message, *, maxsize=0, **options):
        super().send(queue, message, **options)


@fails("test_what_is_leased_does_not_fill_a_queue")
class CountsTheLeased(SimpleProvider):
    def send(self, queue, message, *, maxsize=0, **options):
        counters = self._broker.queues[queue].counters()
        if maxsize and counters["waiting"] + counters["leased"] >= maxsize:
            raise Full
        super().send(queue, message, **options)


@fails("test_a_blocked_send_continues_when_there_is_room", "test_a_full_queue_refuses_after_its_timeout")
class DoesNotWaitForRoom(SimpleProvider):
    def send(self, queue, message, *, timeout=None, **options):
        super().send(queue, message, timeout=0, **options)


@fails("test_racing_senders_do_not_exceed_maxsize")
class LooksThenSends(SimpleProvider):
    def send(self, queue, message, *, maxsize=0, **options):
        if self.size(queue) >= maxsize:
            raise Full
        time.sleep(0.02)
        super().send(queue, message, **options)


@fails("test_a_delayed_message_comes_when_it_is_due")
class IgnoresDelay(SimpleProvider):
    def send(self, queue, message, *, delay=0, **options):
        super().send(queue, message, **options)


@fails(
    "test_a_blocked_receive_gets_a_message_that_is_delayed_meanwhile",
    "test_a_blocked_receive_gets_what_is_leased_and_lost_meanwhile",
)
class SleepsThroughWhatIsDue(SimpleProvider):
    def receive(self, queue, timeout=0, **options):
        with self._broker.lock:
            taken = super().receive(queue, 0, **options)
            while timeout is None and self._is_open and not taken:
                self._broker.queues[queue].changed.wait()
                taken = super().receive(queue, 0, **options) if self._is_open else []
            return taken


@fails("test_an_expired_message_is_dropped", "test_a_message_that_returns_after_its_ttl_is_dropped")
class IgnoresTtl(SimpleProvider):
    def send(self, queue, message, *, ttl=None, **options):
        super().send(queue, message, **options)


@fails("test_an_expired_message_is_dropped")
class ExpiresEverything(SimpleProvider):
    def send(self, queue, message, *, ttl=None, **options):
        super().send(queue, message, ttl=None if ttl is None else 0, **options)


@fails("test_a_delayed_message_expires_as_well")
class IgnoresTtlOfTheDelayed(SimpleProvider):
    def send(self, queue, message, *, delay=0, ttl=None, **options):
        super().send(queue, message, delay=delay, ttl=None if delay else ttl, **options)


@fails("test_the_highest_priority_comes_first")
class IgnoresPriority(SimpleProvider):
    def send(self, queue, message, *, priority=0, **options):
        super().send(queue, message, **options)


@fails("test_the_highest_priority_comes_first")
class ReversesALevel(SimpleProvider):
    def send(self, queue, message, *, priority=0, **options):
        order = self.__dict__.setdefault("_order", itertools.count())
        with self._broker.lock:
            self._broker.queues[queue].offer(message, self, priority=priority * 1000 + next(order))


# ---- leases ---------------------------------------------------------------------------------------------------------------


@fails("test_a_leased_message_is_invisible_until_acked")
class ShowsTheLeased(SimpleProvider):
    def receive(self, queue, timeout=0, *, lease=30.0, **options):
        return super().receive(queue, timeout, lease=None if lease is None else 0, **options)


@fails("test_a_leased_message_is_invisible_until_acked")
class ForgetsToAck(SimpleProvider):
    def ack(self, receipt):
        self._broker.leased(receipt)


@fails("test_it_comes_again_when_the_lease_ends")
class LeasesForEver(SimpleProvider):
    def receive(self, queue, timeout=0, *, lease=30.0, **options):
        return super().receive(queue, timeout, lease=lease and 1e6, **options)


@fails("test_it_comes_again_when_the_lease_ends", "test_nack_returns_it_at_once")
class AlwaysTheFirstAttempt(SimpleProvider):
    def receive(self, queue, timeout=0, **options):
        received = super().receive(queue, timeout, **options)
        for _, receipt in received:
            if receipt:
                receipt.attempt = 1
        return received


@fails("test_a_late_receipt_settles_nothing_and_touches_nobody_elses")
class AcksAStrangers(SimpleProvider):
    def ack(self, receipt):
        super().ack(receipt.item.receipt or receipt)


@fails("test_a_late_receipt_settles_nothing_and_touches_nobody_elses")
class ExtendsAStrangers(SimpleProvider):
    def extend(self, receipt, seconds):
        super().extend(receipt.item.receipt or receipt, seconds)


@fails(
    "test_a_late_ack_that_nobody_contests_tells_the_truth",
    "test_a_late_receipt_settles_nothing_and_touches_nobody_elses",
    "test_a_settled_receipt_is_spent",
)
class HidesThatALeaseIsLost(SimpleProvider):
    def ack(self, receipt):
        try:
            super().ack(receipt)
        except LeaseLost:
            pass


@fails("test_an_ack_may_bring_the_next", "test_a_late_ack_brings_nothing")
class ReceivesWithoutAnAck(SimpleProvider):
    def ack_and_receive(self, receipt, *, lease=30.0):
        return self.receive(receipt.queue, lease=lease)


@fails("test_an_ack_may_bring_the_next")
class RemovesWhatTheAckBrings(SimpleProvider):
    def ack_and_receive(self, receipt, *, lease=30.0):
        found = super().ack_and_receive(receipt, lease=lease) or self.receive(receipt.queue, lease=lease)
        for _, brought in found:
            self.ack(brought)
        return found


@fails("test_a_late_ack_brings_nothing")
class LosesTheNextWithALateAck(SimpleProvider):
    def ack_and_receive(self, receipt, *, lease=30.0):
        found = self.receive(receipt.queue, lease=lease)
        self.ack(receipt)
        return found


@fails("test_extend_moves_the_end_of_the_lease")
class IgnoresExtend(SimpleProvider):
    def extend(self, receipt, seconds):
        self._broker.leased(receipt)


@fails("test_extend_moves_the_end_of_the_lease")
class OnlyLengthens(SimpleProvider):
    def extend(self, receipt, seconds):
        super().extend(receipt, max(seconds, 30))


@fails("test_nack_returns_it_at_once", "test_nack_returns_it_after_its_delay")
class NackForgets(SimpleProvider):
    def nack(self, receipt, delay=0):
        self.ack(receipt)


@fails("test_nack_returns_it_after_its_delay")
class NackIgnoresDelay(SimpleProvider):
    def nack(self, receipt, delay=0):
        super().nack(receipt)


@fails("test_what_was_returned_comes_before_what_is_younger")
class ReturnsToTheEnd(SimpleProvider):
    def nack(self, receipt, delay=0):
        receipt.item.place = (0, 1 << 40)
        super().nack(receipt, delay)


@fails("test_a_message_that_returns_after_its_ttl_is_dropped")
class RenewsTheTtl(SimpleProvider):
    def nack(self, receipt, delay=0):
        receipt.item.expires = float("inf")
        super().nack(receipt, delay)


@fails("test_without_a_lease_it_is_removed")
class KeepsWhatIsRemoved(SimpleProvider):
    def receive(self, queue, timeout=0, *, lease=30.0, **options):
        received = super().receive(queue, timeout, lease=0 if lease is None else lease, **options)
        return [(message, None if lease is None else receipt) for message, receipt in received]


@fails("test_each_message_goes_to_one_of_many_receivers", "test_many_processes_share_a_queue")
class SendsSomeTwice(SimpleProvider):
    def send(self, queue, message, **options):
        for _ in range(2 if message.endswith(b"7") else 1):
            super().send(queue, message, **options)


@fails("test_size_counts_what_waits")
class SizeCountsTheLeased(SimpleProvider):
    def size(self, queue):
        counters = self._broker.queues[queue].counters()
        return counters["waiting"] + counters["leased"]


@fails("test_counters_agree_with_size")
class CountersForgetTheLeased(SimpleProvider):
    def counters(self):
        return {name: {**counters, "leased": 0} for name, counters in super().counters().items()}


# ---- bind and publish -----------------------------------------------------------------------------------------------------


@fails("test_a_binding_is_in_force_on_return_and_ends_with_unbind", "test_a_binding_of_another_process_is_in_force_when_it_returns")
class BindsWhenItReceives(SimpleProvider):
    def bind(self, queue, pattern, *, exact):
        self.__dict__.setdefault("_later", []).append((queue, pattern, exact))

    def receive(self, queue, timeout=0, **options):
        for binding in self.__dict__.pop("_later", []):
            self._broker.bindings.bind(*binding)
        return super().receive(queue, timeout, **options)


@fails("test_a_binding_is_in_force_on_return_and_ends_with_unbind", "test_each_binding_ends_by_itself")
class ForgetsUnbind(SimpleProvider):
    def unbind(self, queue, pattern, *, exact):
        pass


@fails("test_each_binding_ends_by_itself")
class UnbindsAll(SimpleProvider):
    def unbind(self, queue, pattern, *, exact):
        self._broker.bindings.drop(queue)


@fails("test_only_what_matches_is_copied", "test_an_exact_binding_is_no_glob")
class BindsToEverything(SimpleProvider):
    def bind(self, queue, pattern, *, exact):
        super().bind(queue, "*", exact=False)


@fails("test_an_exact_binding_is_no_glob")
class TakesEverythingForAGlob(SimpleProvider):
    def bind(self, queue, pattern, *, exact):
        super().bind(queue, pattern, exact=False)


@fails("test_a_queue_gets_one_copy_however_often_it_is_bound")
class PublishesForEachTopic(SimpleProvider):
    def publish(self, topics, message, **options):
        return max(super(PublishesForEachTopic, self).publish([topic], message, **options) for topic in topics)


@fails("test_publish_counts_the_queues_that_accepted")
class OverCounts(SimpleProvider):
    def publish(self, topics, message, **options):
        return super().publish(topics, message, **options) + 1


@fails("test_a_publisher_sends_each_value_behind_the_next_head")
class PublishersSendHeads(SimpleProvider):
    def publisher(self, topics, heads, encode):
        return lambda value: [encode(value), self.publish(topics, next(heads))][1]


@fails("test_a_publisher_sends_each_value_behind_the_next_head")
class PublishersTakeTheHeadFirst(SimpleProvider):
    def publisher(self, topics, heads, encode):
        return lambda value: self.publish(topics, next(heads) + encode(value))


@fails("test_a_publisher_sends_each_value_behind_the_next_head")
class PublishersKeepTheirReceivers(SimpleProvider):
    def publisher(self, topics, heads, encode):
        names = self._broker.bindings.matching(topics)
        return lambda value: sum(self.send(name, next(heads) + encode(value)) is None for name in names)


@fails("test_a_publisher_sends_what_has_its_head_already")
class PublishersCutTheHead(SimpleProvider):
    def publisher(self, topics, heads, encode, joined=0):
        return lambda value: self.publish(topics, encode(value)[joined:])


@fails("test_what_comes_to_a_temporary_queue_has_no_receipt")
class GivesReceiptsForAll(SimpleProvider):
    def receive(self, queue, *args, **options):
        return [(message, receipt or Receipt(queue, 1)) for message, receipt in super().receive(queue, *args, **options)]


@fails("test_delay_and_ttl_of_publish_are_for_shared_queues")
class PublishIgnoresDelay(SimpleProvider):
    def publish(self, topics, message, *, delay=0, **options):
        return super().publish(topics, message, **options)


@fails("test_delay_and_ttl_of_publish_are_for_shared_queues")
class PublishIgnoresTtl(SimpleProvider):
    def publish(self, topics, message, *, ttl=None, **options):
        return super().publish(topics, message, **options)


# ---- receivers that do not keep up ----------------------------------------------------------------------------------------


@fails("test_a_publisher_waits_for_a_full_receiver_after_it_has_served_the_ready_ones", "test_all_full_receivers_share_one_wait")
class DropsAtOnce(SimpleProvider):
    def publish(self, topics, message, *, timeout=None, **options):
        return super().publish(topics, message, timeout=0, **options)


@fails("test_a_publisher_waits_for_a_full_receiver_after_it_has_served_the_ready_ones", "test_all_full_receivers_share_one_wait")
class WaitsForOneAfterTheOther(SimpleProvider):
    def publish(self, topics, message, *, timeout=1, **options):
        with self._broker.lock:
            return sum(self._wait_for(self._broker.queues[name], message, timeout) for name in self._broker.bindings.matching(topics))

    def _wait_for(self, queue, message, timeout):
        deadline = time.monotonic() + timeout
        while not queue.offer(message, self) and time.monotonic() < deadline:
            self._broker.room.wait(deadline - time.monotonic())
        return 0


@fails("test_a_receiver_that_does_not_keep_up_loses_its_copies_and_delays_nobody")
class WaitsForEveryCopy(SimpleProvider):
    def publish(self, topics, message, **options):
        for queue in self._broker.queues.values():
            queue.behind = False
        return super().publish(topics, message, **options)


@fails("test_a_receiver_that_does_not_keep_up_loses_its_copies_and_delays_nobody")
class CountsTheDropped(SimpleProvider):
    def publish(self, topics, message, **options):
        super().publish(topics, message, **options)
        return len(self._broker.bindings.matching(topics))


@fails("test_a_receiver_that_does_not_keep_up_loses_its_copies_and_delays_nobody")
class DropsUncounted(SimpleProvider):
    def counters(self):
        return {name: {**counters, "dropped": 0} for name, counters in super().counters().items()}


@fails("test_a_full_shared_queue_is_an_error_after_every_other_copy_is_out")
class HidesThatAGroupIsFull(SimpleProvider):
    def publish(self, topics, message, **options):
        try:
            return super().publish(topics, message, **options)
        except PublishFull as error:
            return error.accepted


@fails("test_nobody_waits_for_itself")
class WaitsForItself(SimpleProvider):
    def _new(self, queue, temporary):
        made = super()._new(queue, temporary)
        offer = made.offer
        made.offer = lambda message, sender, **options: offer(message, None, **options)
        return made


# ---- consumers, wake, watch, namespaces -----------------------------------------------------------------------------------


@fails("test_consumers_are_the_live_temporary_queues_of_exactly_this_topic")
class CountsPatternsAsConsumers(SimpleProvider):
    def consumers(self, topic):
        return [name for name in self._broker.bindings.matching([topic]) if isinstance(self._broker.queues[name], Inbox)]


@fails("test_consumers_are_the_live_temporary_queues_of_exactly_this_topic")
class CountsSharedQueuesAsConsumers(SimpleProvider):
    def consumers(self, topic):
        shared = [name for name in self._broker.bindings.bound(topic) if isinstance(self._broker.queues[name], SharedQueue)]
        return [*super().consumers(topic), *shared]


@fails("test_the_consumer_with_the_least_waiting_comes_first")
class IgnoresWhatWaits(SimpleProvider):
    def consumers(self, topic):
        return self._broker.bindings.bound(topic)


@fails("test_the_consumer_that_is_not_busy_comes_first")
class ForgetsWhoIsBusy(SimpleProvider):
    def receive(self, queue, timeout=0, *, busy=False, **options):
        return super().receive(queue, timeout, **options)


@fails("test_equal_consumers_take_turns")
class PrefersAlwaysTheSame(SimpleProvider):
    def consumers(self, topic):
        return sorted(super().consumers(topic))


@fails("test_the_consumers_of_each_topic_take_turns_by_themselves")
class CountsTurnsOfAllTopics(SimpleProvider):
    def __init__(self, config):
        super().__init__(config)
        turns = itertools.count()
        self._turns = defaultdict(lambda: turns)


@fails("test_a_request_reaches_one_consumer_and_says_which")
class AsksEverybody(SimpleProvider):
    def request(self, topic, message, reply_to):
        return ([self.send(queue, message) or queue for queue in self.consumers(topic)] or [None])[0]


@fails("test_a_request_reaches_one_consumer_and_says_which")
class AsksTheDead(LeavesItsInboxes):
    pass


@fails("test_what_is_received_after_a_request")
class ForgetsWhatCameLate(SimpleProvider):
    def request(self, topic, message, reply_to):
        self.receive(reply_to)
        return super().request(topic, message, reply_to)


@fails("test_a_reply_is_received_however_it_is_waited_for")
class LosesReplies(SimpleProvider):
    def reply(self, queue, message):
        pass


@fails("test_a_request_passes_over_the_full_and_waits_for_nobody")
class AsksTheFull(SimpleProvider):
    def request(self, topic, message, reply_to):
        for queue in self.consumers(topic)[::-1]:
            self._broker.queues[queue].offer(message, None)
            return queue
        return None


@fails("test_wake_ends_every_blocked_receive_and_loses_nothing")
class WakesByAMessage(SimpleProvider):
    def wake(self):
        with self._broker.lock:
            for queue in self._broker.queues.values():
                queue.offer(b"", self)


@fails("test_a_watching_receive_ends_when_the_watched_queue_does")
class IgnoresWatch(SimpleProvider):
    def receive(self, queue, timeout=0, *, watch=(), **options):
        return super().receive(queue, timeout, **options)


@fails("test_what_came_before_a_watched_queue_ended_is_received")
class LooksAtWatchFirst(SimpleProvider):
    def receive(self, queue, timeout=0, *, watch=(), **options):
        if watch and watch[0] not in self._broker.queues:
            return []
        return super().receive(queue, timeout, watch=watch, **options)


@fails("test_namespaces_do_not_meet")
class IgnoresTheNamespace(SimpleProvider):
    def __init__(self, config):
        super().__init__(dataclasses.replace(config, namespace="everybody's"))


# ---- readiness ------------------------------------------------------------------------------------------------------------


class NeverDue(MemoryReadiness):
    def arm(self):
        super().arm()


class Deaf(MemoryReadiness):
    """Its descriptor is another pipe's."""

    def __init__(self, *args):
        super().__init__(*args)
        self.others = (*os.pipe(), os.dup(self.fd))
        os.set_blocking(self.others[0], False)
        os.dup2(self.others[0], self.fd)

    def close(self):
        super().close()
        for fd in self.others:
            os.close(fd)


class SeesNoDeaths(MemoryReadiness):
    def watch(self, queue):
        return True


class Readies(SimpleProvider):
    def readiness(self, queue):
        with self._broker.lock:
            return self.kind(queue, self._broker.find(queue), self._broker.queues)


@fails("test_an_event_loop_is_told_what_is_due", "test_an_event_loop_is_told_what_was_there_before")
class NeverKnowsWhen(Readies):
    kind = NeverDue


@fails(
    "test_an_event_loop_is_told_what_comes",
    "test_an_event_loop_is_told_of_an_end",
    "test_an_event_loop_is_told_that_its_queue_was_deleted",
)
class TellsNothing(Readies):
    kind = Deaf


@fails("test_an_event_loop_is_told_of_an_end")
class WatchesTheDead(Readies):
    kind = SeesNoDeaths


@fails("test_an_event_loop_is_told_that_a_publish_would_wait")
class TakesLaterForNever(SimpleProvider):
    def publish(self, topics, message, *, timeout=None, **options):
        return super().publish(topics, message, timeout=0 if timeout == LATER else timeout, **options)


# ---- other processes ------------------------------------------------------------------------------------------------------


@fails("test_a_killed_process_is_no_receiver")
class OutlivesItsProcess(SimpleProvider):
    def close(self):
        pass


@fails("test_what_a_killed_process_has_leased_comes_again")
class TakesItsLeasesAlong(SimpleProvider):
    def _give_back(self, queue):
        pass


# ---- the tests ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class BrokenConfig(SimpleConfig):
    made: type = SimpleProvider

    def create(self):
        return self.made(self)


class Suite(ProviderSuite):
    patience = 1.0
    tick = 0.05

    def __init__(self, made, cross_process):
        self.made = made
        self.cross_process = cross_process

    def config(self):
        namespace = secrets.token_hex(4)
        if not self.cross_process:
            return BrokenConfig(namespace=namespace, made=self.made, max_message_bytes=2 << 20)
        server = Server(self.made)
        self._cleanup.callback(server.close)
        return SocketConfig(namespace=namespace, address=server.address)


CROSS_PROCESS = {name for name in dir(ProviderSuite) if "process" in name and name.startswith("test_")}


def run(provider, test):
    suite = Suite(provider, test in CROSS_PROCESS)
    suite.setup_method()
    try:
        getattr(suite, test)()
    finally:
        suite.teardown_method()


@pytest.mark.parametrize(("broken", "test"), BROKEN, ids=lambda value: getattr(value, "__name__", str(value).removeprefix("test_")))
def test_a_broken_provider_fails(broken, test):
    with pytest.raises((AssertionError, PymqError, Full)):
        run(broken, test)


@pytest.mark.parametrize("test", sorted({test for _, test in BROKEN}))
def test_a_whole_provider_passes_with_as_little_patience(test):
    run(SimpleProvider, test)


def test_every_test_of_the_suite_can_fail():
    assert {name for name in dir(ProviderSuite) if name.startswith("test_")} == {test for _, test in BROKEN}
