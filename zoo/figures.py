"""Matplotlib figures of what :mod:`zoo.inspection` finds; each is returned, and ``figure.savefig(path)`` writes it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 4
COLORS = "magma"
SIGNED_COLORS = "RdBu_r"  # for weights of both signs
LABELED = 64  # the longest sequence whose tokens are written below its positions


def draw_maps(maps: Mapping[str, np.ndarray], *, example: int = 0) -> Figure:
    """Heat maps of attention weights averaged over heads, one for each mixer: queries are rows, keys are columns.

    The color scale is a square root, so that weak weights show beside strong ones. If some weights are negative, as
    in-line attention's may be, the scale is linear, white is zero and blue is negative.

    Args:
      maps: from :func:`zoo.attention_maps`.
      example: row of the batch; for attention in windows, the number of a window.

    Raises:
      ValueError: no maps, or matplotlib is not installed.
    """
    if not maps:
        raise ValueError("there are no maps to draw")
    figure, places = _figure(len(maps))
    from matplotlib.colors import PowerNorm

    for axes, (name, weights) in zip(places, maps.items(), strict=False):
        mean = weights[example].mean(0)
        largest = float(np.abs(mean).max())
        options: dict[str, Any] = {"norm": PowerNorm(0.5, 0, largest)}
        if mean.min() < 0:
            options = {"cmap": SIGNED_COLORS, "vmin": -largest, "vmax": largest}
        _heat(figure, axes, mean, name, "key", "query", **options)
    return figure


def draw_matrix(matrix: np.ndarray, title: str = "") -> Figure:
    """A heat map of how much each output token of a mixer depends on each input token.

    The color scale is logarithmic and ends at a ten-thousandth of the largest entry.

    Args:
      matrix: float32 (tokens out, tokens in), from :func:`zoo.materialize`.
      title: of the figure.

    Raises:
      ValueError: matplotlib is not installed.
    """
    figure, places = _figure(1)
    from matplotlib.colors import LogNorm

    largest = float(matrix.max()) or 1.0
    _heat(
        figure,
        places[0],
        matrix,
        title,
        "input token",
        "output token",
        norm=LogNorm(1e-4 * largest, largest, clip=True),
    )
    return figure


def draw_over_image(image: np.ndarray, share: np.ndarray, grid: tuple[int, int], *, title: str = "") -> Figure:
    """How much of each patch reaches one token, drawn over the image.

    Args:
      image: (height, width, channels) of any range, which is rescaled.
      share: (tokens,), such as a row of :func:`zoo.attention_rollout`; prefix tokens come first and are left out.
      grid: rows and columns of patches.

    Raises:
      ValueError: fewer tokens than the grid has patches, or matplotlib is not installed.
    """
    rows, columns = grid
    if len(share) < rows * columns:
        raise ValueError(f"{len(share)} tokens are fewer than the {rows} x {columns} patches of the grid")
    figure, places = _figure(2)
    height, width = image.shape[:2]
    patches = np.asarray(share[len(share) - rows * columns :]).reshape(rows, columns)
    for axes in places:
        _image(axes, image, "image")
    drawn = places[1].imshow(patches, cmap=COLORS, alpha=0.6, extent=(0, width, height, 0), interpolation="bilinear")
    places[1].set_title(title or "share of each patch")
    figure.colorbar(drawn, ax=places[1])
    return figure


def draw_routes(
    image: np.ndarray, routes: Mapping[str, np.ndarray], region: int | None = None, *, example: int = 0
) -> Figure:
    """The regions that the tokens of one region attend to, drawn over the image, for each mixer that routes.

    The query region has a blue frame, the regions that it attends to have yellow ones, and all others are darkened. The
    map is assumed to be divided evenly into regions, without padding.

    Args:
      image: (height, width, channels) of any range, which is rescaled.
      routes: of ``zoo.capture(model, x, "routes")``: (batch, regions, chosen) int, regions in row-major order.
      region: the query region; None is the middle one.
      example: row of the batch.

    Raises:
      ValueError: no routes, there is no such region, or matplotlib is not installed.
    """
    if not routes:
        raise ValueError("there are no routes to draw")
    figure, places = _figure(len(routes))
    height, width = image.shape[:2]
    for axes, (name, chosen) in zip(places, routes.items(), strict=True):
        side = math.isqrt(chosen.shape[1])
        asking = side // 2 * (side + 1) if region is None else region
        if not 0 <= asking < side * side:
            raise ValueError(f"{name} has the regions 0 to {side * side - 1}, and not {asking}")
        hidden = np.ones(side * side, np.float32)
        hidden[np.asarray(chosen[example, asking])] = 0
        _image(axes, image, name.removesuffix(".routes"))
        over = {"extent": (0, width, height, 0), "vmin": 0, "vmax": 1, "interpolation": "nearest"}
        axes.imshow(hidden.reshape(side, side), cmap="gray_r", alpha=0.7 * hidden.reshape(side, side), **over)
        corners = np.array([[0, 0, 1, 1, 0], [0, 1, 1, 0, 0]])
        framed = [*((seen, "gold", "attended to") for seen in chosen[example, asking]), (asking, "deepskyblue", "asks")]
        for frame, color, label in framed:
            rows, columns = corners + np.array(divmod(int(frame), side))[:, None]
            axes.plot(columns * width / side, rows * height / side, color=color, linewidth=2.5, label=label)
    handles = dict(zip(*places[0].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
    return figure


def draw_clusters(
    members: Mapping[str, Any], tokens: Sequence[Any] | int, *, example: int = 0, head: int = 0
) -> Figure:
    """Which tokens share a cluster, for each mixer that has clusters: clusters are rows, positions are columns.

    Tokens attend within their cluster. With balanced membership a token may be in several clusters or in none.

    Args:
      members: of ``zoo.capture(model, x, "members")``: for each mixer the cluster of each token, (batch, heads, length)
        int, or the positions that clusters hold, (batch, heads, clusters, places) int with ``length`` for an empty
        place, of queries and of keys.
      tokens: the token at each position, which is written there if there are few; or how many there are.
      example: row of the batch.
      head: whose clusters; each head has its own.

    Raises:
      ValueError: no members, or matplotlib is not installed.
    """
    if not members:
        raise ValueError("there are no clusters to draw")
    length = tokens if isinstance(tokens, int) else len(tokens)
    held: dict[str, np.ndarray] = {}
    for path, found in members.items():
        name = path.removesuffix(".members")
        queries, keys = (
            _held(np.asarray(part)[example, head], length)
            for part in (found if isinstance(found, tuple) else (found,) * 2)
        )
        alike = np.array_equal(queries, keys)
        held |= {name: queries} if alike else {f"{name}, queries": queries, f"{name}, keys": keys}
    figure, places = _figure(len(held), columns=1, width=max(6.0, 0.16 * min(length, LABELED) + 2), height=2.6)
    for axes, (name, inside) in zip(places, held.items(), strict=True):
        numbers = np.broadcast_to(np.arange(len(inside))[:, None], inside.shape)
        shown = np.ma.masked_array(numbers % 10, ~inside)
        axes.imshow(shown, cmap="tab10", vmin=0, vmax=9, aspect="auto", interpolation="nearest")
        axes.set(title=name, xlabel="position", ylabel="cluster")
        if not isinstance(tokens, int) and length <= LABELED:
            axes.set_xticks(range(length), [str(token) for token in tokens], fontsize=8)
            axes.set_xlabel("token")
    return figure


def draw_trees(
    image: np.ndarray, trees: Mapping[str, np.ndarray], grid: tuple[int, int], *, example: int = 0
) -> Figure:
    """Trees of tokens drawn over the image, one for each layer: a line from each token to its parent, darker the
    further it is from the root, which is marked by a star.

    Args:
      image: (height, width, channels) of any range, which is rescaled.
      trees: from :func:`zoo.dependency_trees`, of a model without prefix tokens.
      grid: rows and columns of tokens.
      example: row of the batch.

    Raises:
      ValueError: no trees, a number of tokens that is not the grid's, or matplotlib is not installed.
    """
    _check_tokens("trees", trees, grid)
    figure, places = _figure(len(trees))
    centers = _centers(image, grid)
    for axes, (name, found) in zip(places, trees.items(), strict=True):
        parents = np.asarray(found[example])
        (root,) = np.flatnonzero(parents == np.arange(len(parents)))
        depths, above = np.zeros(len(parents), int), np.arange(len(parents))
        while (above != root).any():
            depths += above != root
            above = parents[above]
        _image(axes, image, name)
        for token, parent in enumerate(parents):
            if token != root:
                shade = 0.15 + 0.85 * (depths[token] - 1) / max(depths.max() - 1, 1)
                axes.plot(*centers[[token, parent]].T, color=_color("YlOrRd", shade), linewidth=1.2)
        axes.plot(*centers[root], marker="*", markersize=14, color="deepskyblue", linestyle="", label="root")
    figure.legend(*places[0].get_legend_handles_labels(), loc="outside lower center")
    return figure


def draw_fields_of_view(
    views: np.ndarray, grid: tuple[int, int], token: int | None = None, *, title: str = "head"
) -> Figure:
    """What one token sees, one picture for each head: the weights of its fields of view.

    Args:
      views: (heads, queries, keys), one mixer's result of :func:`zoo.fields_of_view`.
      grid: rows and columns of tokens.
      token: the query, marked by a cross; None is the middle token.
      title: of each picture, before the number of the head.

    Raises:
      ValueError: a number of tokens that is not the grid's, no such token, or matplotlib is not installed.
    """
    _check_tokens("fields of view", {title: views}, grid)
    asking = _asking(token, grid)
    figure, places = _figure(len(views))
    for head, (axes, weights) in enumerate(zip(places, views, strict=True)):
        _heat(figure, axes, weights[asking].reshape(grid), f"{title} {head}", "column", "row")
        row, column = divmod(asking, grid[1])
        axes.plot(column, row, marker="+", markersize=12, color="deepskyblue", linestyle="")
    return figure


def draw_connections(
    image: np.ndarray,
    connections: Mapping[str, np.ndarray],
    grid: tuple[int, int],
    token: int | None = None,
    *,
    example: int = 0,
) -> Figure:
    """The tokens that one token is connected to, drawn over the image, for each mixer: the share of heads that connect
    them.

    Args:
      image: (height, width, channels) of any range, which is rescaled.
      connections: of ``zoo.capture(model, x, "connections")``: bool (batch, heads, tokens of the grid, tokens); prefix
        tokens come first on the last axis and are left out.
      grid: rows and columns of tokens.
      token: the query, in row-major order, marked by a blue frame; None is the middle token.
      example: row of the batch.

    Raises:
      ValueError: no connections, a number of tokens that is not the grid's, no such token, or matplotlib is not
        installed.
    """
    own = {name: np.asarray(seen)[min(example, len(seen) - 1)] for name, seen in connections.items()}
    _check_tokens("connections", own, grid)
    asking, (rows, columns), (height, width) = _asking(token, grid), grid, image.shape[:2]
    figure, places = _figure(len(own))
    for axes, (name, seen) in zip(places, own.items(), strict=True):
        share = seen[:, asking, -rows * columns :].mean(0).reshape(grid)
        _image(axes, image, name.removesuffix(".connections"))
        over: dict[str, Any] = {"extent": (0, width, height, 0), "vmin": 0, "vmax": 1, "interpolation": "nearest"}
        drawn = axes.imshow(share, cmap=COLORS, alpha=0.7, **over)
        corners = np.array([[0, 0, 1, 1, 0], [0, 1, 1, 0, 0]]) + np.array(divmod(asking, columns))[:, None]
        axes.plot(corners[1] * width / columns, corners[0] * height / rows, color="deepskyblue", linewidth=2.5)
        figure.colorbar(drawn, ax=axes, label="share of heads")
    return figure


def draw_receptive_fields(fields: Mapping[str, np.ndarray]) -> Figure:
    """Effective receptive fields as heat maps, each relative to its largest pixel; the color scale is a fourth root.

    Args:
      fields: results of :func:`zoo.receptive_field`, by their titles.

    Raises:
      ValueError: no fields, or matplotlib is not installed.
    """
    if not fields:
        raise ValueError("there are no receptive fields to draw")
    figure, places = _figure(len(fields))
    from matplotlib.colors import PowerNorm

    for axes, (name, field) in zip(places, fields.items(), strict=True):
        _heat(figure, axes, field / max(float(field.max()), 1e-30), name, "column", "row", norm=PowerNorm(0.25, 0, 1))
        axes.set_aspect("equal")
    return figure


def _check_tokens(what: str, of: Mapping[str, np.ndarray], grid: tuple[int, int]) -> None:
    """Refuses an empty mapping, and arrays whose number of tokens is not the grid's."""
    if not of:
        raise ValueError(f"there are no {what} to draw")
    for name, found in of.items():
        tokens = np.shape(found)[1]
        if tokens != grid[0] * grid[1]:
            wanted = f"the {grid[0] * grid[1]} of a grid of {grid[0]} x {grid[1]}"
            raise ValueError(f"{name} has {tokens} tokens, not {wanted}")


def _asking(token: int | None, grid: tuple[int, int]) -> int:
    count = grid[0] * grid[1]
    if token is None:
        return grid[0] // 2 * grid[1] + grid[1] // 2
    if not 0 <= token < count:
        raise ValueError(f"the grid has the tokens 0 to {count - 1}, and not {token}")
    return token


def _centers(image: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Column and row of the middle of each token, in pixels, (tokens, 2)."""
    rows, columns = np.indices(grid).reshape(2, -1)
    return np.stack([(columns + 0.5) * image.shape[1] / grid[1], (rows + 0.5) * image.shape[0] / grid[0]], -1)


def _color(name: str, shade: float) -> Any:
    import matplotlib

    return matplotlib.colormaps[name](shade)


def _held(found: np.ndarray, length: int) -> np.ndarray:
    """bool (clusters, length): which tokens a cluster holds."""
    if found.ndim == 1:
        return found == np.arange(found.max(initial=0) + 1)[:, None]
    return (found[..., None] == np.arange(length)).any(1)


def _image(axes: Any, image: np.ndarray, title: str) -> None:
    low, high = float(np.min(image)), float(np.max(image))
    shown = (np.asarray(image, np.float32) - low) / max(high - low, 1e-12)
    height, width = shown.shape[:2]
    axes.imshow(shown[..., 0] if shown.shape[-1] == 1 else shown, cmap="gray", extent=(0, width, height, 0))
    axes.set(xlabel="column", ylabel="row", title=title)


def _figure(count: int, columns: int = COLUMNS, width: float = 4, height: float = 3.4) -> tuple[Figure, list[Any]]:
    try:
        from matplotlib.figure import Figure  # without pyplot, which would look for a display
    except ImportError as error:
        raise ValueError("drawing needs matplotlib: python -m pip install -e '.[plot]'") from error
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in places[count:]:
        axes.remove()
    return figure, places[:count]


def _heat(figure: Figure, axes: Any, matrix: np.ndarray, title: str, across: str, down: str, **options: Any) -> None:
    drawn = axes.imshow(matrix, aspect="auto", interpolation="nearest", **{"cmap": COLORS, **options})
    axes.set(title=title, xlabel=across, ylabel=down)
    figure.colorbar(drawn, ax=axes)
