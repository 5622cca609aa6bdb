from tests.bed.bed import Engine
import subprocess
def test_a(engine: Engine, scratch) -> None:
    r = engine.run("bookworm-mpich", "mpiexec", "-n", "2", "mpihello")
    assert "of 2" in r.stdout
def test_leak(scratch) -> None:
    (scratch/"m").mkdir(); subprocess.run(["mount","-t","tmpfs","x",scratch/"m"])
def test_left(crun) -> None:
    crun.podman("run","-d","--name",crun.new_name(),"--net=none",crun.load("bookworm-mpich"),"sleep","100", check=True)
