"""Flights in the form of ACEBench's scenarios, written for these tests."""

from typing import Any


class Travel:
    def __init__(self) -> None:
        self.users = {"u1": {"cash": 100.0}}
        self.reservations: list[dict[str, Any]] = []

    def _load_scenario(self, scenario: dict[str, Any], long_context: bool = False) -> None:
        pass

    def get_flights(self, origin: str) -> list[dict[str, Any]]:
        return [{"flight_no": "A1", "origin": origin, "price": 30.0}]

    def reserve_flight(self, user_id: str, flight_no: str) -> dict[str, Any]:
        self.users[user_id]["cash"] -= 30.0
        self.reservations.append({"user_id": user_id, "flight_no": flight_no})
        return {"status": True}
