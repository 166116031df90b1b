"""A small MCP server for the tutorial: the weather of a few made-up days, the same every time.

    tirkit tools import 'mcp:python examples/mcp_server.py' --out weather.jsonl

What you should see: nine tools added, eight of them read-only; `report_weather` is not, so that training never calls it
unless `catalogue.allow` names it. With `--port 8000` the server speaks streamable HTTP at http://127.0.0.1:8000/mcp
instead of standard input and output. Needs `pip install 'tirkit[mcp]'`.
"""

import argparse
import hashlib
from typing import Annotated, Literal

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import Field

City = Literal["Oslo", "Lima", "Nairobi", "Osaka", "Porto", "Quito", "Riga", "Tunis"]
Day = Literal["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
SKIES = ("clear", "cloudy", "rain", "snow", "storm")
LATITUDES = {"Oslo": 60, "Lima": -12, "Nairobi": -1, "Osaka": 35, "Porto": 41, "Quito": 0, "Riga": 57, "Tunis": 37}
STATIONS = {
    "Pier12": ("Oslo", 4),
    "Fell20": ("Oslo", 385),
    "Dune7": ("Lima", 12),
    "Acacia3": ("Nairobi", 1798),
    "Bay41": ("Osaka", 2),
    "Mill9": ("Porto", 88),
    "Crater5": ("Quito", 3120),
    "Spire16": ("Riga", 10),
    "Oasis30": ("Tunis", 47),
}
READ_ONLY = ToolAnnotations(read_only_hint=True)

server = MCPServer("weather", instructions="The weather of one week in eight cities.")
reports: list[str] = []


def _drawn(city: str, day: str, what: str, size: int) -> int:
    """A number below `size` that depends on nothing but the question."""
    return int(hashlib.sha256(f"{city} {day} {what}".encode()).hexdigest(), 16) % size


def _celsius(city: str, day: str) -> int:
    return 28 - abs(LATITUDES[city]) // 2 + _drawn(city, day, "temperature", 9) - 4


@server.tool(annotations=READ_ONLY)
def get_temperature(city: City, day: Day) -> str:
    """Tells the temperature at noon, in degrees Celsius."""
    return f"{_celsius(city, day)} C"


@server.tool(annotations=READ_ONLY)
def get_sky(city: City, day: Day) -> str:
    """Tells what the sky looks like: clear, cloudy, rain, snow or storm."""
    return SKIES[_drawn(city, day, "sky", len(SKIES))]


@server.tool(annotations=READ_ONLY)
def get_wind(city: City, day: Day, unit: Literal["km/h", "m/s"] = "km/h") -> str:
    """Tells the speed of the wind."""
    speed = 5 * _drawn(city, day, "wind", 13)
    return f"{speed} km/h" if unit == "km/h" else f"{speed / 3.6:.1f} m/s"


@server.tool(annotations=READ_ONLY)
def get_sunrise(city: City) -> str:
    """Tells when the sun rises this week."""
    return f"0{5 + _drawn(city, '', 'sunrise', 3)}:{_drawn(city, '', 'minute', 60):02d}"


@server.tool(annotations=READ_ONLY)
def find_warmest(cities: Annotated[list[City], Field(min_length=2)], day: Day) -> str:
    """Tells which of several cities is the warmest."""
    return max(cities, key=lambda city: (_celsius(city, day), city))


@server.tool(annotations=READ_ONLY)
def get_rain(city: City, hour: Annotated[int, Field(ge=0, le=23)]) -> str:
    """Tells how much rain falls in one hour of today, in millimetres."""
    return f"{_drawn(city, str(hour), 'rain', 40) / 10} mm"


@server.tool(annotations=READ_ONLY)
def find_station(station: Annotated[str, Field(examples=["Pier12", "Dune7", "Mill9", "Spire16"])]) -> str:
    """Finds where a weather station stands."""
    if station not in STATIONS:
        raise ToolError(f"there is no station {station!r}")
    city, height = STATIONS[station]
    return f"{city}, {height} m above the sea"


@server.tool(annotations=READ_ONLY)
def to_fahrenheit(celsius: Annotated[int, Field(ge=-90, le=60)]) -> str:
    """Converts degrees Celsius to Fahrenheit."""
    return f"{celsius * 9 / 5 + 32:g} F"


@server.tool()
def report_weather(city: City, day: Day, text: str) -> str:
    """Sends the weather service an observation."""
    reports.append(f"{city}, {day}: {text}")
    return f"thank you, this is report {len(reports)}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The weather as an MCP server.")
    parser.add_argument("--port", type=int, help="speak HTTP at this port instead of standard input and output")
    port = parser.parse_args().port
    if port is None:
        server.run("stdio")
    else:
        server.run("streamable-http", host="127.0.0.1", port=port)
