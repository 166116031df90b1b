"""A phone in the form of ACEBench's scenarios, written for these tests."""

from typing import Any


class BaseApi:
    def __init__(self) -> None:
        self.wifi = False

    def _load_scenario(self, scenario: dict[str, Any], long_context: bool = False) -> None:
        self.wifi = scenario.get("wifi", False)

    def turn_on_wifi(self) -> dict[str, Any]:
        self.wifi = True
        return {"status": True}
