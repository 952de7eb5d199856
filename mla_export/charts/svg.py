"""What matplotlib writes, made fit for a page: colours by class, ids of its own, nothing from elsewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from mla_export.charts import colours

NAMESPACE = "http://www.w3.org/2000/svg"
LINK = "{http://www.w3.org/1999/xlink}href"
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Liberation Sans', sans-serif"
POINTS_TO_PIXELS = 4 / 3
REFERENCE = re.compile(r"url\(#([^)]+)\)")


@dataclass(frozen=True, slots=True)
class Chart:
    """One plot. `name` begins every id in it: charts of one page need different names."""

    name: str
    title: str
    drawing: str

    def inline(self) -> str:
        """Give the `<svg>` element for a page that has `colours.css()` in its style."""
        return self.drawing

    def standalone(self) -> str:
        """Give a whole SVG file: it carries its colours, light or dark as its reader prefers."""
        head, end, body = self.drawing.partition(">")
        head = head.replace("<svg ", f'<svg xmlns="{NAMESPACE}" ', 1)
        paper = '<rect class="mla-paper" width="100%" height="100%" fill="currentColor"/>'
        return f"{head}{end}<style>{colours.css()}</style>{paper}{body}\n"


def chart(name: str, title: str, described: str, written: str) -> Chart:
    """Make a chart of the SVG that matplotlib wrote in the marks of `colours`."""
    # S314 is about XML of others: this was written by matplotlib a moment ago
    root = ET.fromstring(written)  # noqa: S314
    parents = {child: parent for parent in root.iter() for child in parent}
    for element in list(root.iter()):
        if element.tag in (f"{{{NAMESPACE}}}metadata", f"{{{NAMESPACE}}}style"):
            parents[element].remove(element)
        else:
            _recolour(element)
    _rename(root, name)
    width, height = (float(part) * POINTS_TO_PIXELS for part in root.attrib["viewBox"].split()[2:])
    root.attrib.pop("version", None)
    root.attrib |= {
        "class": "mla-chart mla-ink",
        "width": f"{width:g}",
        "height": f"{height:g}",
        "color": colours.ROLES["ink"][0],
        "font-family": FONTS,
        "stroke-linejoin": "round",
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-desc",
    }
    for tag, text in (("desc", described), ("title", title)):
        told = ET.Element(f"{{{NAMESPACE}}}{tag}", {"id": f"{name}-{tag}"})
        told.text = text
        root.insert(0, told)
    return Chart(name, title, _text(root))


def _recolour(element: ET.Element) -> None:
    """Put the class of a role in the place of its mark; the light colour stays for who reads no CSS."""
    style = element.attrib.pop("style", "")
    kept, roles = [], set()
    for declaration in filter(None, (part.strip() for part in style.split(";"))):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if value in colours.ROLE_OF:
            roles.add(colours.ROLE_OF[value])
            element.set(key, "currentColor")
        elif key != "font-family":
            kept.append(f"{key}:{value}")
    for key in ("fill", "stroke"):  # of a hatch's ground
        if element.get(key) in colours.ROLE_OF:
            roles.add(colours.ROLE_OF[element.attrib[key]])
            element.set(key, "currentColor")
    if kept:
        element.set("style", ";".join(kept))
    if roles:
        (role,) = roles  # an element in two colours would need two
        element.attrib |= {"class": f"mla-{role}", "color": colours.ROLES[role][0]}
    elif element.tag == f"{{{NAMESPACE}}}text":
        element.set("fill", "currentColor")


def _rename(root: ET.Element, name: str) -> None:
    """Begin all ids that something refers to with the chart's name, drop the others, and use plain href."""
    used: set[str] = set()
    for element in root.iter():
        if LINK in element.attrib:
            element.set("href", element.attrib.pop(LINK))
        for key, value in element.attrib.items():
            found = [value[1:]] if key == "href" else REFERENCE.findall(value)
            used.update(found)
            if key == "href":
                element.set(key, f"#{name}-{value[1:]}")
            elif found:
                element.set(key, REFERENCE.sub(rf"url(#{name}-\1)", value))
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own in used:
            element.set("id", f"{name}-{own}")


def _text(root: ET.Element) -> str:
    """Write the tree without a namespace, which an HTML parser knows by itself, and without line breaks."""
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{NAMESPACE}}}")
        if element.tag not in ("text", "tspan", "title", "desc"):
            element.text = None
        element.tail = None
        if "d" in element.attrib:
            element.set("d", " ".join(element.attrib["d"].split()))
    return ET.tostring(root, encoding="unicode")
