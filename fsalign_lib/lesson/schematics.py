"""Draw the schematics of the notebooks, in one style: what is sampled, what is scored, where gradients flow."""

from typing import Literal

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

from fsalign_lib.kernels import build_kernel
from fsalign_lib.plotting import PALETTE, new_figure
from fsalign_lib.schedules import NoiseSchedule

BLUE, ORANGE, GREEN, RED, GREY, BLACK = (PALETTE[name] for name in ("blue", "orange", "green", "red", "grey", "black"))
SIZE = 8.5  # of the text


def _sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure whose axes are inches, without frame."""
    figure, ax = new_figure(width=width, height=height)
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.set_axis_off()
    return figure, ax


def _box(ax: Axes, x: float, y: float, text: str, color: str = BLACK, width: float = 1.1, height: float = 0.44) -> None:
    """Draw a box with its centre at (x, y)."""
    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0,rounding_size=0.08"
    ax.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, edgecolor=color, facecolor=color + "18", lw=1.2))
    ax.text(x, y, text, ha="center", va="center", fontsize=SIZE, color=BLACK)


def _state(ax: Axes, x: float, y: float, text: str, color: str = GREY, radius: float = 0.26) -> None:
    """Draw a state of a chain."""
    ax.add_patch(Circle((x, y), radius, edgecolor=color, facecolor=color + "18", lw=1.2))
    ax.text(x, y, text, ha="center", va="center", fontsize=SIZE, color=BLACK)


def _arrow(
    ax: Axes, start: tuple, end: tuple, color: str = BLACK, dashed: bool = False, bend: float = 0.0, width: float = 1.2
) -> None:
    """Draw an arrow from one point to another."""
    style = {"arrowstyle": "-|>", "color": color, "lw": width, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9}
    style |= {"linestyle": (0, (4, 2)) if dashed else "-", "connectionstyle": f"arc3,rad={bend}"}
    ax.annotate("", end, start, arrowprops=style)


def _note(ax: Axes, x: float, y: float, text: str, color: str = BLACK, ha: str = "center", size: float = SIZE) -> None:
    ax.text(x, y, text, ha=ha, va="center", fontsize=size, color=color)


def _cut(ax: Axes, x: float, y: float) -> None:
    """Mark where a gradient is cut."""
    for shift in (-0.04, 0.04):
        ax.plot([x + shift - 0.05, x + shift + 0.05], [y - 0.12, y + 0.12], color=RED, lw=2, zorder=5)


def pso_chains(equation: Literal["5", "6", "7"]) -> Figure:
    """Show the two chains of PSO's mixed (5), offline (6) or online (7) loss, and what each half of the loss scores."""
    kinds = {"5": ("noised", "sampled"), "6": ("noised", "noised"), "7": ("sampled", "sampled")}[equation]
    names = {"5": "mixed", "6": "offline", "7": "online"}
    figure, ax = _sheet(8.6, 2.75)
    _note(ax, 0.05, 2.62, f"PSO Eq. {equation}, {names[equation]}", ha="left", size=10)
    xs = (1.55, 2.9, 4.25, 5.6, 6.75)
    for y, name, kind, color in zip((1.85, 0.72), ("target", "reference"), kinds, (BLUE, ORANGE), strict=True):
        mark = r"\tau" if name == "target" else r"\rho"
        _note(ax, 0.05, y + 0.1, name, color, "left", 10)
        _note(ax, 0.05, y - 0.12, {"noised": "given, noised", "sampled": "own sample"}[kind], GREY, "left", 8)
        for n, x in enumerate(xs[:4]):
            _state(ax, x, y, rf"$x_{{t_{n}}}^{mark}$")
        _state(ax, xs[4], y, rf"$x^{mark}$", color)
        for n in range(4):
            scored = color if n < 3 else GREY
            if kind == "sampled":
                _arrow(ax, (xs[n] + 0.28, y), (xs[n + 1] - 0.28, y), scored, dashed=n == 3)
                text = rf"$\ell_{n}$" if n < 3 else "no density"
                _note(ax, (xs[n] + xs[n + 1]) / 2, y + 0.17, text, scored, size=9.5 if n < 3 else 7.5)
            else:
                start = (xs[4] - 0.12, y + 0.24) if n < 3 else (xs[4] - 0.27, y)
                end = (xs[n] + 0.14, y + 0.23) if n < 3 else (xs[n] + 0.28, y)
                _arrow(ax, start, end, scored, dashed=n == 3, bend=0.13 if n < 3 else 0)
                weight = rf"\omega_{n}" if equation == "5" else ""
                _note(
                    ax,
                    xs[n],
                    y - 0.38,
                    rf"$-{weight}\Delta e_{n}$" if n < 3 else "not scored",
                    scored,
                    size=9.5 if n < 3 else 7.5,
                )
        _note(ax, 7.75, y, rf"$\Sigma^{mark}$", color, size=11)
        _arrow(ax, (7.12, y), (7.5, y), color)
    _note(ax, 7.75, 1.28, r"$-\log\sigma\,(\beta\,[\Sigma^\tau-\Sigma^\rho])$", size=8.5)
    _arrow(ax, (7.75, 1.68), (7.75, 1.42), BLUE)
    _arrow(ax, (7.75, 0.88), (7.75, 1.14), ORANGE)
    words = []
    if "noised" in kinds:
        words.append(r"$\Delta e_n=\|\epsilon-\epsilon_\theta(x_{t_n})\|^2-\|\epsilon-\epsilon_{pre}(x_{t_n})\|^2$")
    if "sampled" in kinds:
        words.append(r"$\ell_n=\log p_\theta(x_{t_{n+1}}|x_{t_n})-\log p_{pre}(x_{t_{n+1}}|x_{t_n})$")
    _note(ax, 0.05, 0.1, "      ".join(words), BLACK, "left", 8.5)
    return figure


def sdpo_pair() -> Figure:
    """Show a pair of SDPO: the shared start, the queried predictions, the anchor, the returns, the loss of one step."""
    figure, ax = _sheet(8.6, 4.1)
    xs, T, middle = (1.15, 2.75, 4.35, 5.95, 7.55), 5, 2.0
    rows = {"a": (2.6, 3.4, BLUE), "b": (1.4, 0.6, GREEN)}
    anchors = {"a": 3, "b": 2}
    _state(ax, xs[0], middle, r"$x_0$", BLACK)
    _note(ax, xs[0] - 0.35, middle + 0.09, "one start,", BLACK, "right", 8)
    _note(ax, xs[0] - 0.35, middle - 0.09, "one prompt", BLACK, "right", 8)
    for name, (y, y_hat, color) in rows.items():
        side = 1 if name == "a" else -1
        for n in range(T):
            asked = n in (0, anchors[name], T - 1)
            if n > 0:
                _state(ax, xs[n], y, rf"$x_{n}^{name}$", color)
                before = (xs[n - 1] + 0.28, y) if n > 1 else (xs[0] + 0.24, middle + 0.12 * side)
                _arrow(ax, before, (xs[n] - 0.28, y), color, width=2.6 if n == 3 else 1.2)
            if n > 0 or name == "a":
                _box(ax, xs[n], y_hat, rf"$\hat x_0^{{({n})}}$", RED if asked else GREY, 0.66, 0.4)
                _arrow(ax, (xs[n], (y if n else middle) + 0.28 * side), (xs[n], y_hat - 0.21 * side), GREY, width=0.9)
        _arrow(ax, (xs[-1] + 0.28, y), (xs[-1] + 0.75, y), color)
        _note(ax, xs[anchors[name]] + 0.4, y_hat, "anchor", RED, "left", 8)
        _note(ax, xs[-1] + 0.4, y_hat, "last", RED, "left", 8)
        _note(ax, xs[1] - 0.45, y + 0.3 * side, "path " + name, color, "right", 10)
        edge = y_hat + 0.32 * side  # the rewards that the return of step 2 adds up
        ax.plot(
            [xs[2] - 0.33, xs[2] - 0.33, xs[4] + 0.33, xs[4] + 0.33],
            [edge - 0.06 * side, edge, edge, edge - 0.06 * side],
            color=color,
            lw=1.2,
        )
        _note(ax, xs[3], edge + 0.16 * side, rf"$G_2^{name}=R_2+\gamma R_3+\gamma^2 R_4$", color, size=9)
    _note(ax, xs[0], 3.76, "asked once for both", RED, size=8)
    _note(ax, (xs[2] + xs[3]) / 2, middle + 0.12, "the loss of step 2 compares", size=8.5)
    _note(ax, (xs[2] + xs[3]) / 2, middle - 0.12, r"$w_2\,(\rho_2^a-\rho_2^b)$  with  $A_2^a-A_2^b$", size=9.5)
    _note(ax, 0.05, 0.36, "red: decoded and scored", RED, "left", 8)
    _note(ax, 0.05, 0.15, r"grey: filled in by similarity; $A$: $G$, standardised", GREY, "left", 8)
    return figure


def distillation(divergence: Literal["kl", "score"]) -> Figure:
    """Show student, assistant and teacher in one update of the student, and where its gradient flows and is cut."""
    score = divergence == "score"
    figure, ax = _sheet(8.6, 3.2)
    title = "Diff-Instruct*: a divergence of scores" if score else "Diff-Instruct and Diff-Instruct++: a KL"
    _note(ax, 0.05, 3.05, title, ha="left", size=10)
    y = 1.5
    _state(ax, 0.4, y, "$z$")
    _box(ax, 1.55, y, r"student $g_\theta$", BLUE)
    _state(ax, 2.75, y, "$x_0$", BLUE)
    _state(ax, 4.05, y, "$x_t$", BLUE)
    _box(ax, 5.55, 2.2, r"assistant $s_\psi$", ORANGE, 1.25)
    _box(ax, 5.55, 0.8, r"teacher $s_{ref}$", GREEN, 1.25)
    _state(ax, 7.2, y, "$y_t$")
    loss = r"$-d'(y_t)^\top\{s_\psi-\nabla\log p(x_t|x_0)\}$" if score else r"$w(t)\;\mathrm{sg}[y_t]^\top x_t$"
    _note(ax, 7.2, 2.88, loss, size=9.5)
    for start, end in (
        ((0.68, y), (0.98, y)),
        ((2.12, y), (2.47, y)),
        ((3.03, y), (3.77, y)),
        ((4.28, y + 0.16), (4.9, 2.2)),
        ((4.28, y - 0.16), (4.9, 0.8)),
        ((6.2, 2.2), (7.0, y + 0.19)),
        ((6.2, 0.8), (7.0, y - 0.19)),
        ((7.2, y + 0.28), (7.2, 2.72)),
        ((2.75, y - 0.28), (2.75, 0.69)),
    ):
        _arrow(ax, start, end)
    _note(ax, 3.4, y + 0.17, "noise", GREY, size=8)
    _note(ax, 7.55, y, r"$s_\psi-s_{ref}$", GREY, "left", 8.5)
    _box(ax, 2.75, 0.45, "decoder, reward", RED, 1.3)
    _note(ax, 3.5, 0.45, r"$-\alpha\, r(x_0)$", BLACK, "left", 9.5)
    back = {"color": RED, "dashed": True, "width": 1.6}  # the gradient, from the loss to the student
    for upper in (True, False):
        side = 1 if upper else -1
        _note(ax, 5.55, y + 0.36 * side, "weights frozen" if score else "run without a graph", GREY, size=8)
        if score:
            _arrow(ax, (6.93, y + 0.1 * side), (6.24, y + 0.52 * side), **back)
            _arrow(ax, (4.9, y + 0.55 * side), (4.36, y + 0.05 * side), **back)
        else:
            _cut(ax, 4.62, y + 0.4 * side)
    _arrow(ax, (6.0 if score else 6.45, 2.88), (4.02, y + 0.3), bend=0.3, **back)
    _arrow(ax, (3.77, y - 0.13), (3.05, y - 0.13), **back)
    _arrow(ax, (2.47, y - 0.13), (2.14, y - 0.13), **back)
    _arrow(ax, (2.62, 0.69), (2.62, y - 0.27), **back)
    _note(ax, 0.05, 0.35, r"dashed red: the gradient in $\theta$", RED, "left", 8)
    if not score:
        _note(ax, 0.05, 0.15, "//: where it is cut", RED, "left", 8)
    return figure


def kernels() -> Figure:
    """Show one step of the three samplers in the plane, from t = 499 to 249: mean, noise, what is kept of the state."""
    schedule, n = NoiseSchedule.scaled_linear(), 2
    figure, axes = new_figure(1, 3, width=2.85, height=3.0, sharex=True, sharey=True)
    x0_hat = torch.tensor([[1.5, 0.9]])
    names = {"renoise": "Renoise (VP)", "euler-ancestral": "Euler ancestral (VE)", "ddim": "DDIM (VP)"}
    for ax, (name, title) in zip(axes[0], names.items(), strict=True):
        kernel, x = build_kernel(name, schedule, 4), torch.tensor([[-0.5, 1.2]])
        if name == "euler-ancestral":
            x = schedule.vp_to_ve(x, int(kernel.timesteps[n]))
        mean, std = kernel.mean(x, x0_hat, n)[0], kernel.std(n)
        for k, alpha in ((2, 0.10), (1, 0.18)):
            ax.add_patch(Circle(tuple(mean), k * std, facecolor=BLUE, alpha=alpha, edgecolor="none"))
        _arrow(ax, tuple(x[0]), tuple(x0_hat[0]), GREY, dashed=True)
        if name == "renoise":
            ax.plot(0, 0, "+", color=GREY)
            ax.text(-0.1, -0.35, "origin", color=GREY, fontsize=8, ha="center")
        _arrow(ax, (0, 0) if name == "renoise" else tuple(x[0]), tuple(mean), BLUE, width=1.8)
        points = [(x[0], "$x$", BLACK, -0.25, 0.15), (x0_hat[0], r"$\hat x_0$", GREEN, 0.14, 0.12)]
        points.append((mean, r"$\mu$", BLUE, -0.1, -0.4))
        if name == "ddim":
            without = build_kernel("ddim", schedule, 4, eta=0.0).mean(x, x0_hat, n)[0]
            points.append((without, r"$\eta = 0$: no noise", ORANGE, -0.35, 0.22))
        for point, text, color, right, up in points:
            ax.plot(*point, "o", color=color, ms=5)
            ax.text(
                float(point[0]) + right, float(point[1]) + up, text, color=color, fontsize=10 if len(text) < 10 else 8
            )
        ax.set(title=title, xlim=(-1.8, 2.6), ylim=(-1.1, 3.0), aspect="equal", xticks=[], yticks=[])
        ax.set_xlabel(
            {
                "renoise": "the mean is $\\hat x_0$, shrunk: $x$ is forgotten",
                "euler-ancestral": "$x$ moves toward $\\hat x_0$",
                "ddim": "$x$ moves toward $\\hat x_0$, shrunk",
            }[name]
        )
        ax.text(2.5, -0.95, f"s = {std:.2f}", ha="right", color=BLUE, fontsize=8.5)
    return figure
