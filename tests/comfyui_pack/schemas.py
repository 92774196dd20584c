"""What the schemas of all test nodes share."""

from comfy_api.latest import io

ENDS = {"is_output_node": True, "not_idempotent": True}
"""Of nodes that a workflow ends with, and that run anew each time."""


def schema(name, inputs=(), outputs=(), **more):
    """The schema of the node SeDialectTest<name>."""
    said = {"inputs": list(inputs), "outputs": list(outputs), **more}
    return io.Schema(node_id=f"SeDialectTest{name}", category="sedialect tests", **said)
