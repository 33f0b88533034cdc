"""``python -m portable_gla_doctor``: the same as ``portable-gla``, and runs where ``python -m portable_gla`` cannot."""

from portable_gla_doctor.launch import main

main()
