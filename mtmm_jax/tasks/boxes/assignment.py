"""Exact linear assignment inside jit: shortest augmenting paths (Jonker and Volgenant 1987)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

_HUGE = 1e9  # stands in for a cost that is not finite: any other choice is better


class _Search(NamedTuple):
    """A path under way: the column it stands on, columns visited, distances and how one came."""

    column: jax.Array
    visited: jax.Array
    distance: jax.Array
    before: jax.Array
    row_price: jax.Array
    column_price: jax.Array


def assign(cost: jax.Array, valid: jax.Array) -> jax.Array:
    """The column of each row in the cheapest one-to-one assignment: `[N]`, -1 for rows not valid.

    Rows enter one by one; each by the shortest augmenting path in reduced costs, so the result is
    optimal after every row. At most N Q^2 elementary steps, in loops of bounded length.

    Args:
        cost: `[N, Q]` with N <= Q. Not differentiated.
        valid: `[N]` bool.
    """
    rows, columns = cost.shape
    if rows > columns:
        raise ValueError(f"{rows} rows cannot each have one of {columns} columns")
    cost = jax.lax.stop_gradient(cost).astype(jnp.float32)
    cost = jnp.where(jnp.isfinite(cost), jnp.clip(cost, -_HUGE, _HUGE), _HUGE)
    # Column 0 is where each search begins; owners[0] is the row that is looking for a place.
    start = (
        jnp.full(columns + 1, rows, jnp.int32),
        jnp.zeros(rows + 1, jnp.float32),
        jnp.zeros(columns + 1, jnp.float32),
    )

    def enter(row: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        owners, row_price, column_price = state
        owners = owners.at[0].set(row)
        found = _shortest_path(cost, owners, row_price, column_price)
        owners = _augment(owners, found.before, found.column)
        here = valid[row]
        new = (owners, found.row_price, found.column_price)
        return tuple(jnp.where(here, a, b) for a, b in zip(new, state, strict=True))

    owners, _, _ = jax.lax.fori_loop(0, rows, enter, start)
    places = jnp.full(rows + 1, -1, jnp.int32)
    places = places.at[owners[1:]].set(jnp.arange(columns, dtype=jnp.int32))
    return jnp.where(valid, places[:rows], -1)


def _shortest_path(
    cost: jax.Array, owners: jax.Array, row_price: jax.Array, column_price: jax.Array
) -> _Search:
    """From column 0 to the nearest free column (owner `rows`: nobody), prices kept feasible."""
    rows, columns = cost.shape

    def step(s: _Search) -> _Search:
        visited = s.visited.at[s.column].set(True)
        row = owners[s.column]
        reduced = cost[row] - s.row_price[row] - s.column_price[1:]
        reduced = jnp.concatenate([jnp.full(1, jnp.inf), reduced])
        nearer = ~visited & (reduced < s.distance)
        distance = jnp.where(nearer, reduced, s.distance)
        before = jnp.where(nearer, s.column, s.before)
        column = jnp.where(visited, jnp.inf, distance).argmin().astype(jnp.int32)
        move = distance[column]
        raised = jnp.where(visited, move, 0.0)
        return _Search(
            column,
            visited,
            jnp.where(visited, distance, distance - move),
            before,
            s.row_price.at[owners].add(raised),
            s.column_price - raised,
        )

    def searching(s: _Search) -> jax.Array:
        return (owners[s.column] != rows) & (s.visited.sum() <= columns)

    begin = _Search(
        jnp.int32(0),
        jnp.zeros(columns + 1, bool),
        jnp.full(columns + 1, jnp.inf),
        jnp.zeros(columns + 1, jnp.int32),
        row_price,
        column_price,
    )
    return jax.lax.while_loop(searching, step, begin)


def _augment(owners: jax.Array, before: jax.Array, column: jax.Array) -> jax.Array:
    """Every column on the path is handed to the owner of the one before it."""

    def hand_on(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        owners, column = state
        return owners.at[column].set(owners[before[column]]), before[column]

    return jax.lax.while_loop(lambda s: s[1] != 0, hand_on, (owners, column))[0]
