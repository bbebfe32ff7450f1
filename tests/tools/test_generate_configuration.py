from pathlib import Path

from sair.settings import describe
from tools.generate_configuration import COMPONENTS, TARGET, document


def test_the_document_says_what_the_settings_are_now() -> None:
    assert TARGET.read_text() == document(), "run: make docs"


def test_every_settings_class_of_the_components_is_in_it() -> None:
    root = Path(__file__).parents[2]
    modules = {
        module
        for component in ("webhook", "extender", "controller", "cuda_hook")
        for module in (root / component).rglob("*.py")
        if '\n@settings("' in module.read_text()
    }
    told = {root / (cls.__module__.replace(".", "/") + ".py") for _title, cls, _where in COMPONENTS}
    assert told == modules


def test_every_setting_has_a_text() -> None:
    missing = [each.variable for _title, cls, _where in COMPONENTS for each in describe(cls) if not each.text]
    assert missing == []
