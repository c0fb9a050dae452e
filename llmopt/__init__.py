"""Large Language Models for Compiler Optimization (arXiv 2309.07062), executable.

The package is a ladder of small modules, one noun each; imports point strictly down it
(`tests/test_architecture.py` holds the ranks). Importing `llmopt` itself loads nothing heavy.
"""

__version__ = "0.1.0"
