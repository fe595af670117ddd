"""Settings come from flags, environment and TOML in this order, through one parser, and errors help."""

from __future__ import annotations

from pathlib import Path

import pytest

from raftkv.api.limits import Limits
from raftkv.config import SETTINGS, Config, Setting, load, parse_address, parse_members, size_bytes
from raftkv.errors import ConfigError
from raftkv.model import Member

SECRET = "0123456789abcdef"
MEMBERS = (
    "n1=127.0.0.1:8401,http://127.0.0.1:8400",
    "n2=127.0.0.1:8411,http://127.0.0.1:8410",
    "n3=127.0.0.1:8421,http://127.0.0.1:8420",
)
FLAGS = {"name": "n1", "data_dir": "/data", "member": MEMBERS}


def configured(flags: dict[str, object] | None = None, **environment: str) -> Config:
    return load({**FLAGS, **(flags or {})}, {"RAFTKV_SECRET": SECRET, **environment})


def test_defaults_are_those_of_the_contract() -> None:
    config = configured()
    assert config.name == "n1"
    assert config.data_dir == Path("/data")
    assert config.api == ("127.0.0.1", 8400)
    assert config.raft == ("127.0.0.1", 8401)
    assert config.ops_listen is None
    assert config.snapshots is None
    assert config.route == "redirect"
    assert (config.election_timeout_ms_min, config.election_timeout_ms_max) == (500, 1000)
    assert config.heartbeat_ms == 100
    assert config.secret == SECRET.encode()
    assert config.client_url == "http://127.0.0.1:8400"
    assert config.warnings == ()


def test_flag_wins_over_environment_over_toml_over_default(tmp_path: Path) -> None:
    file = tmp_path / "raftkv.toml"
    file.write_text('heartbeat_ms = 60\nelection_timeout_ms_min = 300\nroute = "forward"\n')
    environment = {
        "RAFTKV_SECRET": SECRET,
        "RAFTKV_HEARTBEAT_MS": "70",
        "RAFTKV_ELECTION_TIMEOUT_MS_MIN": "350",
    }
    config = load({**FLAGS, "heartbeat_ms": "80"}, environment, config_file=file)
    assert config.heartbeat_ms == 80
    assert config.election_timeout_ms_min == 350
    assert config.route == "forward"
    assert config.election_timeout_ms_max == 1000


def test_the_environment_alone_configures_a_node(tmp_path: Path) -> None:
    file = tmp_path / "raftkv.toml"
    file.write_text('log_format = "json"\n')
    config = load(
        {},
        {
            "RAFTKV_NAME": "n2",
            "RAFTKV_DATA_DIR": "/data",
            "RAFTKV_MEMBER": " ".join(MEMBERS),
            "RAFTKV_API": ":8410",
            "RAFTKV_SECRET": SECRET,
            "RAFTKV_CONFIG": str(file),
            "RAFTKV_SERVICE_HOST": "10.0.0.7",
        },
    )
    assert config.api == ("0.0.0.0", 8410)
    assert config.member == Member("n2", "127.0.0.1:8411", "http://127.0.0.1:8410")
    assert config.log_format == "json"


def test_toml_alone_configures_a_node(tmp_path: Path) -> None:
    secret_file = tmp_path / "secret"
    secret_file.write_text(SECRET + "\n")
    secret_file.chmod(0o600)
    file = tmp_path / "raftkv.toml"
    members = ", ".join(f'"{member}"' for member in MEMBERS)
    file.write_text(
        f'name = "n3"\ndata_dir = "/data"\nmember = [{members}]\nsecret_file = "{secret_file}"\n'
        'snapshot_log_bytes_max = "8MiB"\n'
    )
    config = load({}, {}, config_file=file)
    assert config.secret == SECRET.encode()
    assert config.secret_file == secret_file
    assert config.snapshot_log_bytes_max == 8 << 20
    assert config.warnings == ()


def test_every_setting_has_its_own_field_and_a_valid_example() -> None:
    fields = set(Config.__dataclass_fields__) | set(Limits.__dataclass_fields__)
    for setting in SETTINGS:
        assert {"member": "members"}.get(setting.name, setting.name) in fields, setting.name
        setting.parse([setting.example] if setting.repeated else setting.example)


@pytest.mark.parametrize("setting", [each for each in SETTINGS if each.parse is not Path])
def test_a_bad_value_names_setting_value_and_what_is_allowed(setting: Setting) -> None:
    bad: object = ["/;"] if setting.repeated else "/;"
    with pytest.raises(ConfigError) as refused:
        configured({setting.name: bad})
    message = str(refused.value)
    assert setting.flag in message
    assert "/;" in message
    assert setting.allowed in message
    assert setting.example in message


def test_a_bad_value_names_where_it_was_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="RAFTKV_HEARTBEAT_MS: 'soon'"):
        configured(RAFTKV_HEARTBEAT_MS="soon")
    file = tmp_path / "raftkv.toml"
    file.write_text("heartbeat_ms = true\n")
    with pytest.raises(ConfigError, match=r"heartbeat_ms in .*raftkv\.toml: True"):
        load(FLAGS, {"RAFTKV_SECRET": SECRET}, config_file=file)


@pytest.mark.parametrize("missing", ["name", "data_dir", "member"])
def test_a_missing_setting_is_named_with_every_way_to_give_it(missing: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load({**FLAGS, missing: None}, {"RAFTKV_SECRET": SECRET})
    message = str(refused.value)
    assert f"--{missing.replace('_', '-')} is not set" in message
    assert f"RAFTKV_{missing.upper()}" in message


def test_a_typo_in_toml_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    file = tmp_path / "raftkv.toml"
    file.write_text("hartbeat_ms = 100\n")
    with pytest.raises(ConfigError, match="did you mean heartbeat_ms"):
        load(FLAGS, {"RAFTKV_SECRET": SECRET}, config_file=file)


def test_a_secret_in_toml_is_refused_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "raftkv.toml"
    file.write_text(f'secret = "{SECRET}"\n')
    with pytest.raises(ConfigError, match="does not belong in a configuration file") as refused:
        load(FLAGS, {}, config_file=file)
    assert SECRET not in str(refused.value)


def test_an_unreadable_config_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(FLAGS, {}, config_file=tmp_path / "absent.toml")
    (tmp_path / "broken.toml").write_text("name = \n")
    with pytest.raises(ConfigError, match="not a TOML file"):
        load(FLAGS, {}, config_file=tmp_path / "broken.toml")


def test_the_secret_is_required_long_enough_and_never_in_repr(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="secret"):
        load(FLAGS, {})
    with pytest.raises(ConfigError, match="15 bytes"):
        configured(RAFTKV_SECRET=SECRET[:-1])
    with pytest.raises(ConfigError, match="cannot be read"):
        configured({"secret_file": str(tmp_path / "absent")})
    assert SECRET not in repr(configured())


def test_a_secret_file_that_others_can_read_is_warned_about(tmp_path: Path) -> None:
    secret_file = tmp_path / "secret"
    secret_file.write_text(SECRET)
    secret_file.chmod(0o644)
    (warning,) = configured({"secret_file": str(secret_file)}).warnings
    assert "0644" in warning
    assert "chmod 600" in warning


def test_the_name_must_be_a_member() -> None:
    with pytest.raises(ConfigError, match="--name n9 is not among the members"):
        configured({"name": "n9"})


@pytest.mark.parametrize(
    ("minimum", "maximum", "heartbeat", "fine"),
    [(201, 202, 100, True), (200, 400, 100, False), (500, 500, 100, False), (500, 499, 100, False)],
)
def test_timings_must_fit_together(minimum: int, maximum: int, heartbeat: int, fine: bool) -> None:
    flags: dict[str, object] = {
        "election_timeout_ms_min": str(minimum),
        "election_timeout_ms_max": str(maximum),
        "heartbeat_ms": str(heartbeat),
    }
    if fine:
        assert configured(flags).election_timeout_ms_min == minimum
    else:
        with pytest.raises(ConfigError, match="--election-timeout-ms"):
            configured(flags)


def test_two_listeners_on_one_port_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--api and --ops-listen are both 127\.0\.0\.1:8400"):
        configured({"ops_listen": "127.0.0.1:8400"})


def test_members_are_sorted_and_unique() -> None:
    assert [member.name for member in parse_members(tuple(reversed(MEMBERS)))] == ["n1", "n2", "n3"]
    for twice in (
        "n1=127.0.0.1:9,http://127.0.0.1:10",
        "n9=127.0.0.1:8401,http://127.0.0.1:10",
        "n9=127.0.0.1:9,http://127.0.0.1:8400",
    ):
        with pytest.raises(ValueError, match="twice"):
            parse_members((*MEMBERS, twice))


@pytest.mark.parametrize(
    "text",
    [
        "n1",
        "n1=",
        "n1=h:1",
        "=h:1,http://h",
        "n1=:1,http://h",
        "n1=h,http://h",
        "n1=h:1,h:2",
        "n1=h:1,ftp://h",
        "n1=h:1,http://h/path",
        "n1=h:1,http://u@h",
        "n 1=h:1,http://h",
        "n1=h:1,http://h:99999",
    ],
)
def test_a_malformed_member_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_members([text])


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("h:1", ("h", 1)),
        (":8400", ("0.0.0.0", 8400)),
        ("[::1]:8400", ("::1", 8400)),
        ("1.2.3.4:65535", ("1.2.3.4", 65535)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["h", "h:", "h:0", "h:65536", "::1:80", "h:-1", "h:١", "http://h:1", "a b:1"]
)
def test_malformed_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_address(text)


def test_limits_are_settings_like_any_other() -> None:
    config = configured({"value_bytes_max": "64KiB"}, RAFTKV_CONNECTIONS_MAX="500")
    assert config.limits == Limits(value_bytes_max=64 << 10, connections_max=500)
    assert configured().limits == Limits()
    with pytest.raises(ConfigError, match="--value-bytes-max"):
        configured({"value_bytes_max": "8GiB"})


def test_limits_must_fit_together() -> None:
    with pytest.raises(ConfigError, match="--batch-line-bytes-max 1048576 can't hold"):
        configured({"batch_line_bytes_max": "1MiB"})
    with pytest.raises(ConfigError, match="--timeout-seconds 20 is above"):
        configured({"timeout_seconds": "20", "timeout_seconds_max": "10"})


def test_sizes_take_binary_units() -> None:
    parse = size_bytes(1, 1 << 30)
    assert [parse(text) for text in ("1", "1B", "2KiB", "3 MiB", "1GiB")] == [1, 1, 2048, 3 << 20, 1 << 30]
    for text in ("0", "2GiB", "1MB", "1.5MiB", "-1", "", "9" * 30):
        with pytest.raises(ValueError, match="not a size"):
            parse(text)


# --- TLS ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tls_cert": "n1.pem"}, "--tls-cert and --tls-key go together"),
        ({"tls_key": "n1.key"}, "--tls-cert and --tls-key go together"),
        ({"tls_client_ca": "ca.pem"}, "--tls-client-ca needs --tls-cert"),
        ({"peer_tls_cert": "n1.pem", "peer_tls_key": "n1.key"}, "all three, or none"),
        ({"peer_tls_ca": "ca.pem"}, "all three, or none"),
    ],
)
def test_half_of_tls_is_refused(given: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        configured(dict(given))


def test_a_key_that_others_can_read_and_a_plain_url_are_warned_of(tmp_path: Path) -> None:
    key = tmp_path / "n1.key"
    key.write_text("key")
    key.chmod(0o644)
    config = configured({"tls_cert": str(tmp_path / "n1.pem"), "tls_key": str(key)})
    assert [word for text in config.warnings for word in ("chmod 600", "https://") if word in text] == [
        "chmod 600",
        "https://",
    ]


# --- tokens ----------------------------------------------------------------------------------------------

TOKEN = "rkv_0123456789abcdef_" + "x" * 40


def test_a_bootstrap_token_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    file.chmod(0o600)
    config = configured({"auth": "tokens", "bootstrap_token_file": str(file)})
    assert (config.auth, config.bootstrap_token, config.warnings) == ("tokens", TOKEN, ())
    assert configured(RAFTKV_BOOTSTRAP_TOKEN=TOKEN).bootstrap_token == TOKEN
    assert (configured().auth, configured().bootstrap_token) == ("off", None)
    assert TOKEN not in repr(config)


def test_a_bootstrap_token_that_is_none_is_refused_without_being_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a token; allowed: rkv_ID_SECRET") as refused:
        configured(RAFTKV_BOOTSTRAP_TOKEN="hunter2" * 9)
    assert "hunter2" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"--bootstrap-token-file .*: cannot be read"):
        configured({"bootstrap_token_file": str(tmp_path / "nothing")})


def test_a_bootstrap_token_in_a_configuration_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "raftkv.toml"
    file.write_text(f'bootstrap_token = "{TOKEN}"\n')
    with pytest.raises(ConfigError, match="does not belong in a configuration file") as refused:
        load(FLAGS, {"RAFTKV_SECRET": SECRET}, config_file=file)
    assert TOKEN not in str(refused.value)


def test_no_secret_has_a_flag() -> None:
    flags = {setting.flag for setting in SETTINGS}
    assert {"--secret-file", "--bootstrap-token-file"} <= flags
    assert not flags & {"--secret", "--bootstrap-token", "--token"}
