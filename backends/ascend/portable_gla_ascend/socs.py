from dataclasses import dataclass
@dataclass(frozen=True)
class Soc:
    name: str
    cube_cores: int
    vector_cores: int
    unified_kib: int
    l0c_kib: int
    l1_kib: int
