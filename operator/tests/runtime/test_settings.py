import logging

import pytest

from disagg_operator.errors import SettingsError
from disagg_operator.settings import settings_from

IMAGES = {
    "DISAGG_AGENT_IMAGE": "agent:1",
    "DISAGG_ENGINE_IMAGE": "engine:1",
    "DISAGG_ROUTER_IMAGE": "router:1",
}


def test_images_are_enough():
    found = settings_from(IMAGES)
    assert (found.agent_image, found.engine_image, found.router_image) == (
        "agent:1",
        "engine:1",
        "router:1",
    )
    assert found.namespaces == ()
    assert found.http_port == 8080


def test_namespaces_are_a_list_without_doubles():
    found = settings_from({**IMAGES, "DISAGG_WATCH_NAMESPACES": "a, b,,a"})
    assert found.namespaces == ("a", "b")


@pytest.mark.parametrize("name", IMAGES)
def test_missing_image_is_refused_by_name(name):
    with pytest.raises(SettingsError, match=name):
        settings_from({**IMAGES, name: " "})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DISAGG_WATCH_NAMESPACES", "Bad_Name"),
        ("DISAGG_OPERATOR_PORT", "http"),
        ("DISAGG_LEASE", "disagg"),
        ("DISAGG_ROOT_KEY", "disagg"),
        ("DISAGG_ROOT_KEY", "default/"),
        ("DISAGG_LEASE", "default/Not_A_Name"),
        ("DISAGG_OPERATOR_PORT", "70000"),
        ("DISAGG_LOG_LEVEL", "loud"),
    ],
)
def test_bad_value_is_refused_with_name_and_value(name, value):
    with pytest.raises(SettingsError) as found:
        settings_from({**IMAGES, name: value})
    assert name in str(found.value)
    assert value.upper() in str(found.value).upper()


def test_log_level_is_a_word():
    assert settings_from({**IMAGES, "DISAGG_LOG_LEVEL": "debug"}).log_level == logging.DEBUG
