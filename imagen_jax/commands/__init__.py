"""The modes of the console command, one file each; `imagen_jax.main` lists every file of this folder.

A new mode is one new file here, for instance count.py:

    import argparse

    from imagen_jax.commands.parts.command import Command


    def add_flags(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("corpus", metavar="DIR", help="corpus directory")


    def run(args: argparse.Namespace) -> None:
        from imagen_jax.data.records import Corpus  # Here, not above: `imagen_jax --help` imports this file.

        corpus = Corpus(args.corpus)
        print(sum(corpus.num_examples(split) for split in corpus.splits))


    COMMAND = Command(name="count", help="count the examples of a corpus", run=run, add_flags=add_flags)

A mode that gin files configure is a `GinCommand`. parts/ holds what modes are made of, and is not listed.
"""
