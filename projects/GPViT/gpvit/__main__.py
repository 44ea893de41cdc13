from gpvit.cli.main import main

if __name__ == "__main__":
    # Without a spec, multiprocessing imports this file in spawned processes by its path, as it does
    # for a script, so that the import of gpvit.cli.main prepares them.
    __spec__ = None
    main()
