"""The strings that structure a conversation; in a tirkit vocabulary each is one token."""

TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
SELECT_OPEN, SELECT_CLOSE = "<tool_token>", "</tool_token>"
CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
MODE_TAGS = {"think": "[think]", "no_think": "[no_think]"}

CONTROL_STRINGS = (
    TURN_START,
    TURN_END,
    THINK_OPEN,
    THINK_CLOSE,
    SELECT_OPEN,
    SELECT_CLOSE,
    CALL_OPEN,
    CALL_CLOSE,
    ANSWER_OPEN,
    ANSWER_CLOSE,
    *MODE_TAGS.values(),
)
