"""A shop's back office in the form of τ-bench's retail domain: its tools, over the database that the data brings.

Written from the tools' documents and from recorded results; the authors' code is not used. Calls never change the
database itself: a `Shop` copies what it changes, so that every attempt has one of its own, and two can be compared.
"""

import ast
import copy
import json
import operator
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tirkit.types import ToolCall, ToolErrorKind, ToolResult

REASONS = ("no longer needed", "ordered by mistake")
ADDRESS = ("address1", "address2", "city", "state", "country", "zip")
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class RefusedError(Exception):
    """The shop does not do what was asked; the message says why, for the model to read."""


class Database:
    """Orders, users and products, by id."""

    def __init__(self, folder: Path):
        tables = (json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ("orders", "users", "products"))
        self.orders, self.users, self.products = tables
        self.variants = {key: one for product in self.products.values() for key, one in product["variants"].items()}


class Shop:
    """One attempt's view of the database, as a toolbox. `changed` holds the orders and users as they are now."""

    def __init__(self, database: Database):
        self.database = database
        self.changed: dict[str, dict[str, Any]] = {}

    def run(self, call: ToolCall) -> ToolResult:
        """What the tool answers: JSON, or why it refuses."""
        tool = TOOLS.get(call.name)
        if tool is None:
            return ToolResult(name=call.name, content=f"no tool {call.name!r}", error=ToolErrorKind.UNKNOWN_TOOL)
        before = copy.deepcopy(self.changed)
        try:
            value = tool(self, **call.arguments)
        except (RefusedError, TypeError, KeyError, AttributeError, ValueError) as error:
            self.changed = before  # a refusal leaves nothing half done
            return ToolResult(name=call.name, content=f"Error: {error}", error=ToolErrorKind.RAISED)
        return ToolResult(name=call.name, content=value if isinstance(value, str) else json.dumps(value))

    def state(self) -> dict[str, dict[str, Any]]:
        """What differs from the database."""
        known = {**self.database.orders, **self.database.users}
        return {key: record for key, record in self.changed.items() if record != known[key]}

    def order(self, order_id: str) -> dict[str, Any]:
        """The order, to be read."""
        return self._record(self.database.orders, order_id, "order")

    def user(self, user_id: str) -> dict[str, Any]:
        """The user, to be read."""
        return self._record(self.database.users, user_id, "user")

    def own(self, record: dict[str, Any], key: str) -> dict[str, Any]:
        """A copy of the record that may be changed."""
        return self.changed.setdefault(key, copy.deepcopy(record))

    def _record(self, table: Mapping[str, dict[str, Any]], key: str, what: str) -> dict[str, Any]:
        if key not in table:
            raise RefusedError(f"{what} not found")
        return self.changed.get(key, table[key])

    def order_in(self, order_id: str, status: str) -> dict[str, Any]:
        """The order, to be changed. RefusedError unless it is in `status`."""
        order = self.order(order_id)
        if order["status"] != status:
            raise RefusedError(f"the order is {order['status']}, not {status}")
        return self.own(order, order_id)

    def payment_method(self, user_id: str, name: str) -> dict[str, Any]:
        """The user's payment method. RefusedError where there is none of that name."""
        methods = self.user(user_id)["payment_methods"]
        if name not in methods:
            raise RefusedError("payment method not found")
        return methods[name]

    def pay(self, user_id: str, name: str, amount: float) -> None:
        """Take `amount` (negative: give) from a gift card; other methods hold no balance here."""
        if self.payment_method(user_id, name)["source"] == "gift_card":
            card = self.own(self.user(user_id), user_id)["payment_methods"][name]
            if amount > 0 and card["balance"] < amount:
                raise RefusedError("the gift card's balance is too small")
            card["balance"] = round(card["balance"] - amount, 2)


def _check_items(order: Mapping[str, Any], item_ids: list[str]) -> None:
    if Counter(item_ids) - Counter(item["item_id"] for item in order["items"]):
        raise RefusedError("some of the items are not in the order")


def _swap(shop: Shop, order: dict[str, Any], item_ids: list[str], new_item_ids: list[str]) -> list[tuple[Any, Any]]:
    """(item of the order, new variant) pairs. RefusedError where they cannot be swapped."""
    _check_items(order, item_ids)
    if len(item_ids) != len(new_item_ids):
        raise RefusedError("there must be as many new items as old ones")
    pairs: list[tuple[Any, Any]] = []
    left = list(order["items"])  # an item that is named twice is there twice
    for old, new in zip(item_ids, new_item_ids, strict=True):
        item = next(item for item in left if item["item_id"] == old)
        left = [other for other in left if other is not item]
        variant = shop.database.products[item["product_id"]]["variants"].get(new)
        if variant is None or not variant["available"]:
            raise RefusedError(f"item {new} is not a variant of the product, or is not available")
        pairs.append((item, variant))
    return pairs


def _difference(pairs: list[tuple[Any, Any]]) -> float:
    return sum(variant["price"] - item["price"] for item, variant in pairs)


def cancel_pending_order(shop: Shop, order_id: str, reason: str) -> Any:
    """Cancel, and pay back what was paid."""
    order = shop.order_in(order_id, "pending")
    if reason not in REASONS:
        raise RefusedError("the reason must be one of: " + ", ".join(REASONS))
    for paid in list(order["payment_history"]):
        _book(shop, order, "refund", paid["amount"], paid["payment_method_id"])
    order |= {"status": "cancelled", "cancel_reason": reason}
    return order


def _book(shop: Shop, order: dict[str, Any], kind: str, amount: float, method: str) -> None:
    order["payment_history"].append({"transaction_type": kind, "amount": amount, "payment_method_id": method})
    shop.pay(order["user_id"], method, amount if kind == "payment" else -amount)


def exchange_delivered_order_items(
    shop: Shop, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
) -> Any:
    """Ask for an exchange; nothing is paid yet."""
    order = shop.order_in(order_id, "delivered")
    difference = round(_difference(_swap(shop, order, item_ids, new_item_ids)), 2)
    method = shop.payment_method(order["user_id"], payment_method_id)
    if method["source"] == "gift_card" and method["balance"] < difference:
        raise RefusedError("the gift card's balance is too small")
    order |= {
        "status": "exchange requested",
        "exchange_items": sorted(item_ids),
        "exchange_new_items": sorted(new_item_ids),
        "exchange_payment_method_id": payment_method_id,
        "exchange_price_difference": difference,
    }
    return order


def return_delivered_order_items(shop: Shop, order_id: str, item_ids: list[str], payment_method_id: str) -> Any:
    """Ask for a return; the money goes back where it came from, or to a gift card."""
    order = shop.order_in(order_id, "delivered")
    method = shop.payment_method(order["user_id"], payment_method_id)
    if method["source"] != "gift_card" and payment_method_id != order["payment_history"][0]["payment_method_id"]:
        raise RefusedError("the refund goes to the original payment method or to a gift card")
    _check_items(order, item_ids)
    order |= {
        "status": "return requested",
        "return_items": sorted(item_ids),
        "return_payment_method_id": payment_method_id,
    }
    return order


def modify_pending_order_items(
    shop: Shop, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
) -> Any:
    """Swap items, pay or get back the difference; can be done once."""
    order = shop.order_in(order_id, "pending")
    pairs = _swap(shop, order, item_ids, new_item_ids)
    difference = _difference(pairs)
    _book(shop, order, "payment" if difference > 0 else "refund", abs(difference), payment_method_id)
    for item, variant in pairs:
        item |= {key: variant[key] for key in ("item_id", "price", "options")}
    order["status"] = "pending (item modified)"
    return order


def modify_pending_order_payment(shop: Shop, order_id: str, payment_method_id: str) -> Any:
    """Pay with another method, get the first payment back."""
    order = shop.order_in(order_id, "pending")
    (paid,) = order["payment_history"]
    if paid["payment_method_id"] == payment_method_id:
        raise RefusedError("the new payment method must be another one")
    _book(shop, order, "payment", paid["amount"], payment_method_id)
    _book(shop, order, "refund", paid["amount"], paid["payment_method_id"])
    return order


def modify_pending_order_address(shop: Shop, order_id: str, **address: str) -> Any:
    """Send the order elsewhere."""
    order = shop.order(order_id)
    if not order["status"].startswith("pending"):
        raise RefusedError(f"the order is {order['status']}, not pending")
    return _move(shop.own(order, order_id), address)


def modify_user_address(shop: Shop, user_id: str, **address: str) -> Any:
    """Change where the user lives."""
    return _move(shop.own(shop.user(user_id), user_id), address)


def _move(record: dict[str, Any], address: dict[str, str]) -> dict[str, Any]:
    record["address"] = {part: address[part] for part in ADDRESS}
    return record


def find_user_id_by_email(shop: Shop, email: str) -> str:
    """The user of that address."""
    return _find(shop, lambda user: user["email"].lower() == email.lower())


def find_user_id_by_name_zip(shop: Shop, first_name: str, last_name: str, zip: str) -> str:
    """The user of that name who lives there."""
    name = {"first_name": first_name.lower(), "last_name": last_name.lower()}
    return _find(
        shop,
        lambda user: (
            {part: text.lower() for part, text in user["name"].items()} == name and user["address"]["zip"] == zip
        ),
    )


def _find(shop: Shop, fits: Callable[[dict[str, Any]], bool]) -> str:
    found = next((key for key in shop.database.users if fits(shop.user(key))), None)
    if found is None:
        raise RefusedError("user not found")
    return found


def get_product_details(shop: Shop, product_id: str) -> Any:
    """A product with its variants."""
    if product_id not in shop.database.products:
        raise RefusedError("product not found")
    return shop.database.products[product_id]


def calculate(shop: Shop, expression: str) -> str:
    """Plain arithmetic, to two places."""
    return str(round(float(_value(ast.parse(expression, mode="eval").body)), 2))


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    raise RefusedError("only numbers, + - * / and brackets")


TOOLS: dict[str, Callable[..., Any]] = {
    tool.__name__: tool
    for tool in (
        cancel_pending_order,
        exchange_delivered_order_items,
        return_delivered_order_items,
        modify_pending_order_items,
        modify_pending_order_payment,
        modify_pending_order_address,
        modify_user_address,
        find_user_id_by_email,
        find_user_id_by_name_zip,
        get_product_details,
        calculate,
    )
} | {
    "get_order_details": lambda shop, order_id: shop.order(order_id),
    "get_user_details": lambda shop, user_id: shop.user(user_id),
    "get_item_details": lambda shop, item_id: shop.database.variants[item_id],
    "list_all_product_types": lambda shop: {
        product["name"]: key for key, product in sorted(shop.database.products.items(), key=lambda one: one[1]["name"])
    },
    "think": lambda shop, thought: "",
    "transfer_to_human_agents": lambda shop, summary: "Transfer successful",
}
