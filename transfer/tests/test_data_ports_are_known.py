"""UCX listens where DISAGG_DATA_PORTS says and nowhere else, so a NetworkPolicy can name it."""

from pathlib import Path

LISTENS, ESTABLISHED = "0A", "01"


def sockets_of(agent):
    """(state, local end, remote end) of the process's TCP sockets; an end is its address and port,
    since two agents may have the same port of two addresses.
    """
    process = Path(f"/proc/{agent.process.pid}")
    mine = {str(link.readlink())[8:-1] for link in (process / "fd").iterdir()}
    for name in ("tcp", "tcp6"):
        for line in (process / "net" / name).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in mine:
                yield fields[3], *map(end, fields[1:3])


def end(field):
    address, _, port = field.rpartition(":")
    return address, int(port, 16)


def test_agents_listen_on_their_data_ports_and_decode_is_the_one_that_connects(
    tmp_path, rooms, kit
):
    ports = range(22100, 22200)
    env = {"DISAGG_DATA_PORTS": "22100-22199", "UCX_TLS": "tcp"}
    with kit.agents(tmp_path, both={"env": env}) as pair:
        pair.round_trip(next(rooms))
        for agent in (pair.prefill, pair.decode):
            others = {agent.http_port, agent.control_port}
            listening = {here[1] for state, here, _ in sockets_of(agent) if state == LISTENS}
            assert listening - others
            assert all(port in ports for port in listening - others)
        listens = {here for state, here, _ in sockets_of(pair.prefill) if state == LISTENS}
        out = {there for state, _, there in sockets_of(pair.decode) if state == ESTABLISHED}
        assert any(port in ports for _, port in out & listens)
        back = {there for state, _, there in sockets_of(pair.prefill) if state == ESTABLISHED}
        own = {here for state, here, _ in sockets_of(pair.decode) if state == LISTENS}
        assert not back & own
