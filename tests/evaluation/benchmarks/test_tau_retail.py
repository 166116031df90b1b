"""The shop's tools: by hand, and against what τ-bench's tools answered."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tirkit.evaluation.benchmarks.retail import Database, Shop
from tirkit.evaluation.benchmarks.tau_retail import TAU_RETAIL, database
from tirkit.types import StopReason, ToolCall, Trajectory, Turn


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """One user with a gift card of 10.00, one delivered and one pending order of a 7.50 cup; a 9.25 cup is for sale."""
    cup = {"name": "Cup", "product_id": "p", "item_id": "small", "price": 7.5, "options": {}}
    card = {"source": "gift_card", "balance": 10.0, "id": "card"}
    user = {
        "name": {"first_name": "Ada", "last_name": "Bo"},
        "email": "Ada@x.org",
        "address": {"zip": "1"},
        "payment_methods": {"card": card, "bank": {"source": "credit_card", "id": "bank"}},
    }

    def order(status: str) -> dict[str, Any]:
        paid = {"transaction_type": "payment", "amount": 7.5, "payment_method_id": "card"}
        return {"user_id": "ada", "items": [cup], "status": status, "payment_history": [paid], "address": {}}

    variants = {
        "small": {"item_id": "small", "price": 7.5, "available": True, "options": {}},
        "big": {"item_id": "big", "price": 9.25, "available": True, "options": {}},
        "gone": {"item_id": "gone", "price": 1.0, "available": False, "options": {}},
    }
    tables = {
        "orders": {"#1": order("pending"), "#2": order("delivered")},
        "users": {"ada": user},
        "products": {"p": {"name": "Cup", "product_id": "p", "variants": variants}},
    }
    for name, table in tables.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(table))
    return Shop(Database(tmp_path))


def balance(shop: Shop) -> float:
    return shop.user("ada")["payment_methods"]["card"]["balance"]


def test_cancelling_pays_back(shop: Shop) -> None:
    assert not shop.run(
        ToolCall(name="cancel_pending_order", arguments={"order_id": "#1", "reason": "no longer needed"})
    ).error
    assert (shop.order("#1")["status"], balance(shop)) == ("cancelled", 17.5)
    assert shop.state().keys() == {"#1", "ada"}
    assert shop.database.orders["#1"]["status"] == "pending"  # another attempt finds it as it was


def test_another_item_costs_the_difference(shop: Shop) -> None:
    change = {"order_id": "#1", "item_ids": ["small"], "new_item_ids": ["big"], "payment_method_id": "card"}
    shop.run(ToolCall(name="modify_pending_order_items", arguments=change))
    assert balance(shop) == 8.25  # 10 - (9.25 - 7.5)
    assert shop.order("#1")["payment_history"][1] == {
        "transaction_type": "payment",
        "amount": 1.75,
        "payment_method_id": "card",
    }
    again = shop.run(ToolCall(name="modify_pending_order_items", arguments=change))
    assert again.content == "Error: the order is pending (item modified), not pending"


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        (
            "cancel_pending_order",
            {"order_id": "#2", "reason": "no longer needed"},
            "the order is delivered, not pending",
        ),
        ("cancel_pending_order", {"order_id": "#1", "reason": "bored"}, "the reason must be one of"),
        ("get_order_details", {"order_id": "#9"}, "order not found"),
        ("modify_pending_order_payment", {"order_id": "#1", "payment_method_id": "card"}, "must be another one"),
        (
            "return_delivered_order_items",
            {"order_id": "#2", "item_ids": ["small"], "payment_method_id": "bank"},
            "original",
        ),
        (
            "return_delivered_order_items",
            {"order_id": "#2", "item_ids": ["big"], "payment_method_id": "card"},
            "not in the",
        ),
        ("calculate", {"expression": "__import__('os')"}, "only numbers"),
        ("get_user_details", {"id": "ada"}, "unexpected keyword"),
    ],
)
def test_what_the_shop_refuses_changes_nothing(shop: Shop, name: str, arguments: dict[str, Any], why: str) -> None:
    result = shop.run(ToolCall(name=name, arguments=arguments))
    assert result.error
    assert why in result.content
    assert not shop.state()


def test_users_are_found_and_sums_are_done(shop: Shop) -> None:
    def ask(name: str, **arguments: Any) -> str:
        return shop.run(ToolCall(name=name, arguments=arguments)).content

    assert ask("find_user_id_by_email", email="ada@X.org") == "ada"
    assert ask("find_user_id_by_name_zip", first_name="ada", last_name="BO", zip="1") == "ada"
    assert ask("calculate", expression="(1 + 2) * 3 / 4") == "2.25"
    assert json.loads(ask("list_all_product_types")) == {"Cup": "p"}


def hashable(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple((key, hashable(item)) for key, item in sorted(value.items()))
    return tuple(map(hashable, value)) if isinstance(value, list) else value


def test_the_shop_answers_as_the_recorded_one_did(shared_data: Path) -> None:
    folder = shared_data / "tau_bench"
    base = database(folder / "db_retail")
    records = [
        json.loads(line)
        for name in ("v1_retail_train_gt_traces.jsonl", "v1_retail_dev_gt_traces.jsonl")
        for line in (folder / name).read_text().splitlines()
    ]
    for place, record in enumerate(records):
        shop = Shop(base)
        for step in record["gt_trace"]:
            assert shop.run(ToolCall(name=step["name"], arguments=step["kwargs"])).content == step["observation"]
        assert bool(shop.state()) == record["db_changed"]
        if place % 20 == 0:  # the recorded hash is over the whole database: slow
            tables = {"orders": base.orders, "products": base.products, "users": base.users}
            after = {name: {k: shop.changed.get(k, v) for k, v in table.items()} for name, table in tables.items()}
            assert hashlib.sha256(str(hashable(after)).encode()).hexdigest() == record["gt_db_sha256"]


def test_the_state_decides_not_the_way(shared_data: Path) -> None:
    cases = TAU_RETAIL.load(shared_data, limit=5).cases
    case = next(case for case in cases if case.task.gold_calls)
    gold = case.task.gold_calls or ()
    look = ToolCall(name="list_all_product_types")
    done = Turn(text="", answer="Done.")

    def right(*calls: ToolCall) -> float:
        turns = (Turn(text="", calls=calls), done)
        made = Trajectory(task_id=case.task.id, prompt=(), turns=turns, stop=StopReason.ANSWERED)
        return TAU_RETAIL.score(made, case).right

    assert right(*gold) == right(look, *gold) == 1  # looking changes nothing
    assert right() == right(*gold[:-1]) == 0
