"""ComfyUI's frontend in a browser: workflows opened and run, and where its nodes stand."""

from typing import Any

PATIENCE = 600_000  # ms


def ready(page: Any, url: str, vue: bool) -> None:
    """Open the frontend, past its first-run dialogs, with Nodes 2.0 on or off."""
    page.set_default_timeout(120_000)
    page.goto(url, wait_until="domcontentloaded")
    page.wait_for_function("window.app && window.app.graph && window.app.extensionManager")
    page.wait_for_timeout(4000)
    page.evaluate(
        """async (vue) => {
          const setting = window.app.extensionManager.setting;
          await setting.set("Comfy.TutorialCompleted", true);
          await setting.set("Comfy.VueNodes.Enabled", vue);
        }""",
        vue,
    )
    page.keyboard.press("Escape")


def open_nodes(page: Any, nodes: dict) -> None:
    """Open a workflow in API form."""
    page.evaluate("async (nodes) => { await window.app.loadApiJson(nodes, 'test'); window.app.graph.arrange(60); }", nodes)
    page.wait_for_timeout(1500)
    fit_view(page)


def open_workflow(page: Any, graph: dict) -> None:
    """Open a workflow as the frontend saves them."""
    page.evaluate("async (graph) => { await window.app.loadGraphData(graph, true, true, 'test'); }", graph)
    page.wait_for_timeout(1500)
    fit_view(page)


def fit_view(page: Any) -> None:
    """Show the whole workflow: Nodes 2.0 gives a node its size when it is in view."""
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(1000)


def run(page: Any) -> tuple[str, dict]:
    """Press Run, and wait for how it ends: the event's name and what it tells."""
    page.evaluate(
        """() => {
          window.happened = [];
          for (const name of ["execution_error", "execution_success"])
            window.app.api.addEventListener(name, (event) => window.happened.push([name, event.detail]));
        }"""
    )
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.wait_for_function("() => window.happened.length > 0", timeout=PATIENCE)
    page.wait_for_timeout(500)
    name, detail = page.evaluate("() => window.happened[0]")
    return name, detail


def boxes(page: Any) -> dict[str, list[float]]:
    """What each node covers, title and all, by its id and title: left, top, right, bottom, in the graph's units."""
    found = page.evaluate(
        """() => window.app.graph.nodes.map((node) => {
          const element = document.querySelector(`[data-node-id="${node.id}"]`);
          const scale = window.app.canvas.ds.scale;
          const shown = element?.getBoundingClientRect();
          const [x, y] = node.pos;
          const title = 30;
          const size = shown ? [shown.width / scale, shown.height / scale] : [node.size[0], node.size[1] + title];
          return [`${node.id} ${node.title}`, [x, y - title, x + size[0], y - title + size[1]]];
        })"""
    )
    return dict(found)
