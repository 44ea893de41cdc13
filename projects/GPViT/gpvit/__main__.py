from gpvit.cli.main import main

if __name__ == "__main__":
    __spec__ = None  # so that processes that are spawned import this file again, as they do a script, and prepare first
    main()
