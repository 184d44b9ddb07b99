"""Small parts of the embedding explorer: what it knows of its page, and how its controls share rows."""

from __future__ import annotations

from typing import Any

import anywidget
import ipywidgets as ui
import traitlets


class Page(anywidget.AnyWidget):
    """Tells Python whether the page is dark, and keeps Jupyter's shortcuts off controls that need the arrow keys."""

    _esm = """
    export default { render({ model, el }) {
      const tell = () => { model.set("dark", document.body.dataset.jpThemeLight === "false"); model.save_changes(); };
      const keep = event => event.target.setAttribute("data-lm-suppress-shortcuts", "true");
      setTimeout(() => el.closest(".recnb-explorer")?.addEventListener("focusin", keep), 500);
      const widen = width => el.closest(".recnb-explorer")?.querySelectorAll("canvas").forEach(
        canvas => { canvas.style.width = width; });
      const measure = () => { widen("99%"); setTimeout(widen, 300, "100%"); };  // as jscatter lost its maps' sizes
      const watch = new MutationObserver(() => { tell(); setTimeout(measure, 700); });
      watch.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
      tell();
      return () => watch.disconnect();
    } };
    """
    dark = traitlets.Bool(False).tag(sync=True)


def control(kind: Any, *given: Any, basis: int = 150, **more: Any) -> Any:
    """A control that shares its row with others and keeps its label whole."""
    layout = ui.Layout(width="auto", flex=f"1 1 {basis}px")
    return kind(*given, style={"description_width": "initial"}, layout=layout, **more)


def row(*children: Any) -> ui.HBox:
    """Widgets side by side, on further lines where there is no room."""
    return ui.HBox(children, layout=ui.Layout(flex_flow="row wrap", align_items="flex-start"))
