import pickle

import pytest

from sair.errors import AnnotationError, InvalidInput, SairError, SchemaVersionError


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("a", 1, "b"),
        AnnotationError("sair.dev/mode", "on", "one of off"),
        SchemaVersionError("9", "1", "sair memory migrate"),
    ],
)
def test_an_error_survives_the_way_from_one_process_to_another(error: SairError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)


def test_a_long_value_is_shortened_in_the_message() -> None:
    assert len(str(InvalidInput("field", "x" * 10_000, "less"))) < 300
