"""Messages on that phone: two fit."""

from typing import Any

from model_inference.multi_step.scenariosen.phone_platform.base_api import BaseApi


class MessageApi(BaseApi):
    def __init__(self) -> None:
        super().__init__()
        self.inbox = {1: {"to": "Ada", "message": "Hi"}, 2: {"to": "Bo", "message": "Old"}}
        self.hidden = 0

    def send_message(self, receiver_name: str, message: str) -> dict[str, Any]:
        if not self.wifi or len(self.inbox) == 2:
            return {"status": False}
        self.inbox[3] = {"to": receiver_name, "message": message}
        return {"status": True}

    def delete_message(self, message_id: int) -> dict[str, Any]:
        del self.inbox[message_id]
        return {"status": True}
