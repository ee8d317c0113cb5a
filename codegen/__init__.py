"""What is emitted: kernel builders by strategy, targets, LLVM, linking."""
