"""Which servers an address names."""

from springtide.drivers.postgres_servers import each_server


def test_one_server_is_itself() -> None:
    for dsn in (
        "postgresql://me@db:5432/postgres",
        "postgresql:///postgres",
        "postgresql://me@/postgres?host=%2Ftmp%2Fa",
    ):
        assert len(each_server(dsn)) == 1
    assert each_server("postgresql://me@db:5432/postgres") == ["postgresql://me@db:5432/postgres"]


def test_several_hosts_and_folders_of_sockets_are_told_apart_and_keep_what_else_is_said() -> None:
    assert each_server("postgresql://me:pw@a:1,b:2/ledger?sslmode=require") == [
        "postgresql://me:pw@a:1/ledger?sslmode=require",
        "postgresql://me:pw@b:2/ledger?sslmode=require",
    ]
    assert each_server("postgresql://me@/ledger?host=/tmp/a%2C/tmp/b&sslmode=disable") == [
        "postgresql://me@/ledger?host=%2Ftmp%2Fa&sslmode=disable",
        "postgresql://me@/ledger?host=%2Ftmp%2Fb&sslmode=disable",
    ]
