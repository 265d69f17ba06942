"""`python -m mlx_codegen` is `mlx-codegen`."""

from mlx_codegen.cli.main import main

if __name__ == "__main__":
    main()
