"""Agents whose models follow a script, for the tests that run the real `Runner`."""

from __future__ import annotations

from typing import Any

from agents import Agent, RunConfig, function_tool
from agents.items import TResponseOutputItem
from agents.run_config import ToolErrorFormatterArgs
from agents.testing import ScriptedModel, assistant_message, function_call
from agents.usage import Usage

#: Without it every run would try to export a trace.
QUIET = RunConfig(tracing_disabled=True)

#: Whether this SDK tells a formatter what a tool raised; 0.21 does not, so its errors come without their type.
TELLS_TOOL_ERRORS = "error" in ToolErrorFormatterArgs.__dataclass_fields__

Step = TResponseOutputItem | list[TResponseOutputItem]


@function_tool
def weather(city: str) -> str:
    """Say what the weather is like."""
    return f"{city}: sunny"


@function_tool
def broken(city: str) -> str:
    """Fail, and let the model know."""
    raise ValueError(f"no station in {city}")


@function_tool(failure_error_function=None)
def fatal(city: str) -> str:
    """Fail, and end the run."""
    raise ValueError(f"no station in {city}")


@function_tool(needs_approval=True)
def refund(amount: int) -> str:
    """Pay back, once a person has approved."""
    return f"{amount} refunded"


def says(text: str) -> TResponseOutputItem:
    return assistant_message(text)


def calls(tool: str, call_id: str, **arguments: Any) -> TResponseOutputItem:
    return function_call(tool, arguments, call_id=call_id)


def scripted(*steps: Step) -> Agent[None]:
    """Return an agent that answers one step per model call: an item, or a list of them."""
    model = ScriptedModel(
        [step if isinstance(step, list) else [step] for step in steps],
        default_usage=Usage(requests=1, input_tokens=10, output_tokens=5, total_tokens=15),
    )
    return Agent(name="Assistant", model=model, tools=[weather, broken, fatal, refund])


def heard(agent: Agent[None]) -> list[Any]:
    """Return what the model was given as input at its latest call."""
    assert isinstance(agent.model, ScriptedModel)
    assert agent.model.last_call is not None
    return list(agent.model.last_call.input)
