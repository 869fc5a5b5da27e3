"""UCX listens where DISAGG_DATA_PORTS says and nowhere else, so a NetworkPolicy can name it."""

from pathlib import Path

LISTENS, ESTABLISHED = "0A", "01"


def sockets_of(agent):
    """(state, local port, remote port) of the process's TCP sockets."""
    process = Path(f"/proc/{agent.process.pid}")
    mine = {str(link.readlink())[8:-1] for link in (process / "fd").iterdir()}
    for name in ("tcp", "tcp6"):
        for line in (process / "net" / name).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in mine:
                ends = (int(end.rpartition(":")[2], 16) for end in fields[1:3])
                yield fields[3], *ends


def test_agents_listen_on_their_data_ports_and_decode_is_the_one_that_connects(
    tmp_path, rooms, kit
):
    ports = range(22100, 22200)
    env = {"DISAGG_DATA_PORTS": "22100-22199", "UCX_TLS": "tcp"}
    with kit.agents(tmp_path, both={"env": env}) as pair:
        pair.round_trip(next(rooms))
        for agent in (pair.prefill, pair.decode):
            others = {agent.http_port, agent.control_port}
            listening = {port for state, port, _ in sockets_of(agent) if state == LISTENS}
            assert listening - others
            assert all(port in ports for port in listening - others)
        listens = {port for state, port, _ in sockets_of(pair.prefill) if state == LISTENS}
        out = {there for state, _, there in sockets_of(pair.decode) if state == ESTABLISHED}
        assert out & listens & set(ports)
        back = {there for state, _, there in sockets_of(pair.prefill) if state == ESTABLISHED}
        own = {port for state, port, _ in sockets_of(pair.decode) if state == LISTENS}
        assert not back & own
