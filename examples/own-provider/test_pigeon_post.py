import secrets

from pigeon_post import PigeonConfig

from pymq.testing import ProviderSuite


class TestPigeon(ProviderSuite):
    def config(self) -> PigeonConfig:
        return PigeonConfig(namespace=secrets.token_hex(4))
