"""A plugin: the suite with every table one entry larger, that of `tests/test_made_up_entries.py`.

    pytest -p tests.made_up

Suites over the tables then test the made-up entries as well; nothing may break. What only the
package's own entries have, such as a line in a docstring, is asked of `packaged` ones.
"""

import pytest


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    del session
    for table, name, entry in _entries().values():
        table[name] = entry


def packaged(table):
    """The entries of a table that the package itself has."""
    own = {id(entry) for _, _, entry in _entries().values()}
    return {
        name: entry
        for name, entry in table.items()
        if id(entry) not in own and not getattr(entry, "__module__", "").startswith("tests.")
    }


def _entries():
    from tests.test_made_up_entries import ENTRIES

    return ENTRIES
