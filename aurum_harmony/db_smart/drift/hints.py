"""Say that the models have what a database lacks: at boot, and in the error of a query while debugging.

Boot comes here also where it asks the database alone, so that comparing is only imported where something may lack.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from ..dialects.base import facts_of
from ..errors import DbSmartError
from ..files import read_regular
from ..notices import logger_of
from ..schema import model_names

if TYPE_CHECKING:
    from ..store.database import Database
    from ..store.history import State
    from .comparison import Comparison

_logger = logger_of(__name__)
#: What the name of the flag ends with, for the file with the models that were compared last while debugging.
_COMPARED = ".models"
#: Of an engine: its errors have hints.
_WATCHED = "db_smart_hints"


class Hints:
    """The hints of one application.

    :param comparison: makes what compares, which leaves out what the application leaves out.
    :param databases: by name.
    :param models: the tables of the models by bind key.
    """

    def __init__(
        self,
        comparison: Callable[[], Comparison],
        databases: Mapping[str, Database],
        models: Mapping[str | None, sa.MetaData],
    ) -> None:
        self._comparison = comparison
        self._with_models = [
            (database, models[database.key])
            for database in databases.values()
            if database.key in models and models[database.key].tables and not database.in_memory
        ]

    def at_boot(self, states: Mapping[str, State | None], ahead: Container[str], said: Iterable[str] = ()) -> None:
        """Warn of what databases lack, if a run has not found them complete for these very models.

        :param states: the state row of each database that was asked.
        :param ahead: which databases are ahead of the code.
        :param said: the tables of which another message has told.
        """
        for database, metadata in self._with_models:
            state = states.get(database.name)
            if database.name not in states and database.path is None:
                continue  # boot would wait for a server that it has nothing to ask of
            if state is None or state.models != model_names.digest(metadata):
                self._warn(database, metadata, said, ahead=database.name in ahead)

    def while_debugging(self, flag: str) -> None:
        """Compare where the models have changed since that was done last; a warm boot asks no database otherwise.

        :param flag: the path of the flag, beside which it is kept what was compared.
        """
        path = Path(flag + _COMPARED)
        digests = "".join(f"{model_names.digest(metadata)}\n" for _, metadata in self._with_models)
        with suppress(OSError):
            if read_regular(str(path), len(digests) + 1) == digests.encode():
                return
        lacking = [self._warn(database, metadata, ()) for database, metadata in self._with_models]
        if not any(lacking):
            with suppress(OSError):
                path.write_text(digests, encoding="ascii")

    def in_errors(self, engines: Mapping[str | None, Engine]) -> None:
        """Have the error of a query for a missing table or column say so, when the models have it."""
        for database, metadata in self._with_models:
            engine = engines.get(database.key)
            if engine is None or getattr(engine, _WATCHED, False):
                continue
            setattr(engine, _WATCHED, True)
            sa.event.listen(engine, "handle_error", self._hint(database, metadata))

    def _hint(self, database: Database, metadata: sa.MetaData) -> Callable[[Any], None]:
        def hint(context: Any) -> None:
            error = context.sqlalchemy_exception
            if error is None or not facts_of(context.dialect.name).says(context.original_exception, "missing"):
                return
            with suppress(Exception):  # whatever it is, the application gets the error of its query
                lacking = self._comparison().lacking(database, metadata)
                words = str(context.original_exception).lower()
                named = [name for name in lacking if name.rpartition(".")[2].lower() in words]
                if named:
                    error.add_detail(f"db-smart: {model_names.said(named)}.")

        return hint

    def _warn(self, database: Database, metadata: sa.MetaData, said: Iterable[str], *, ahead: bool = False) -> bool:
        """Whether the database lacks anything of the models."""
        try:
            lacking = self._comparison().lacking(database, metadata)
        except DbSmartError as error:
            _logger.debug("db-smart: the models were not compared: %s", error)
            return False
        except Exception as error:  # of the database or of the application's hook: a boot does without
            _logger.debug(
                "db-smart: the models were not compared: the database %r: %s", database.name, database.cause(error)
            )
            return False
        found = [name for name in lacking if name not in said]
        if found:
            _logger.warning("db-smart: %s (database %r)", model_names.said(found, ahead=ahead), database.name)
        return bool(lacking)
