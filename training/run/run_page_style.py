"""Style and script of the page of a run. Nothing is loaded from elsewhere."""

STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1c1f24, #e6e8ea); --paper: light-dark(#fff, #15171b);
  --card: light-dark(#f6f7f9, #1d2026); --muted: light-dark(#5d6570, #9aa3ad); --line: light-dark(#dde1e6, #333941);
  --good: light-dark(#1f8a50, #4cc38a); --bad: light-dark(#c2352b, #ff7b72);
  --c0: light-dark(#0b62a8, #58a6ff); --c1: light-dark(#c2560c, #f0883e); --c2: light-dark(#0f8a6a, #3fb99a);
  --c3: light-dark(#a63d8f, #e07bc9); --c4: light-dark(#8a6d00, #d6b52c); --c5: light-dark(#5b4bc4, #a99bff);
  --c6: light-dark(#c2352b, #ff7b72); --c7: light-dark(#5d6570, #9aa3ad); }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 76rem;
  margin: 1.5rem auto 4rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
h3 { font-size: .95rem; margin: 0 0 .5rem; } p.lead { margin: .3rem 0 .6rem; }
.muted { color: var(--muted); font-size: .85rem; }
em.state { font-style: normal; font-weight: 600; } em.finished { color: var(--good); } em.ended { color: var(--bad); }
#late { color: var(--bad); }
.progress { height: .5rem; background: var(--line); border-radius: .25rem; overflow: hidden; }
.progress i { display: block; height: 100%; background: var(--c0); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .6rem; margin: .9rem 0 .4rem; }
.tiles div { background: var(--card); border-radius: 6px; padding: .5rem .7rem; }
.tiles b { display: block; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--muted); font-size: .8rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; } .plots figure { background: var(--card); border-radius: 8px; padding: .7rem .7rem .5rem; min-width: 0; }
figcaption { font-size: .9rem; font-weight: 600; } figcaption small { color: var(--muted); font-weight: 400; }
svg { width: 100%; display: block; touch-action: pan-y; } svg .grid { stroke: var(--line); stroke-width: 1; }
svg .tick { fill: var(--muted); font-size: 10.5px; } svg .mark { stroke: var(--muted); visibility: hidden; }
polyline { fill: none; stroke-width: 1.7; stroke-linejoin: round; } polyline.dashed { stroke-dasharray: 5 3; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); } .c3 { stroke: var(--c3); }
.c4 { stroke: var(--c4); } .c5 { stroke: var(--c5); } .c6 { stroke: var(--c6); } .c7 { stroke: var(--c7); }
circle { fill: var(--card); stroke-width: 1.7; }
.legend { list-style: none; margin: .1rem 0 0; padding: 0; font-size: .8rem; color: var(--muted); display: flex;
  flex-wrap: wrap; gap: .1rem .9rem; }
.legend li { overflow-wrap: anywhere; } .legend b { color: var(--ink); font-variant-numeric: tabular-nums; }
.legend i { display: inline-block; width: .9rem; height: 0; border-top: 3px solid; vertical-align: middle;
  margin-right: .35rem; }
i.c0 { color: var(--c0); } i.c1 { color: var(--c1); } i.c2 { color: var(--c2); } i.c3 { color: var(--c3); }
i.c4 { color: var(--c4); } i.c5 { color: var(--c5); } i.c6 { color: var(--c6); } i.c7 { color: var(--c7); }
article { background: var(--card); border-radius: 8px; padding: .8rem; margin-bottom: 1rem; }
.views { display: flex; flex-wrap: wrap; gap: .6rem; } .views img { height: 9rem; max-width: 100%; border-radius: 4px; }
.views figcaption { color: var(--muted); font-weight: 400; font-size: .8rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .82rem; margin: .6rem 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; }
td, th { text-align: left; font-weight: 400; padding: .2rem 1.2rem .2rem 0; vertical-align: top; } th { color: var(--muted); }
"""

SCRIPT = """
for (const svg of document.querySelectorAll("svg[data-lines]")) {
  const lines = Object.entries(JSON.parse(svg.dataset.lines)), mark = svg.querySelector(".mark");
  const values = [...svg.parentNode.querySelectorAll(".legend b")], last = values.map(b => b.textContent);
  const caption = svg.parentNode.querySelector("figcaption"), title = caption.innerHTML;
  svg.addEventListener("pointermove", event => {
    const x = (event.clientX - svg.getBoundingClientRect().left) / svg.clientWidth * svg.viewBox.baseVal.width;
    let best = null;
    lines.forEach(([, points], i) => {
      const near = points.reduce((a, b) => Math.abs(b[2] - x) < Math.abs(a[2] - x) ? b : a);
      values[i].textContent = Number(near[1].toPrecision(4));
      if (best === null || Math.abs(near[2] - x) < Math.abs(best[2] - x)) best = near;
    });
    for (const end of ["x1", "x2"]) mark.setAttribute(end, best[2]);
    mark.style.visibility = "visible";
    caption.innerHTML = title + " <small>step " + best[0] + "</small>";
  });
  svg.addEventListener("pointerleave", () => {
    values.forEach((b, i) => { b.textContent = last[i]; });
    mark.style.visibility = "hidden"; caption.innerHTML = title;
  });
}
const late = document.getElementById("late"), age = Date.now() / 1000 - late.dataset.written;
if (late.dataset.state === "running" && age > 600)
  late.textContent = "Nothing new for " + Math.round(age / 60) + " minutes: the run may have been stopped.";
"""
