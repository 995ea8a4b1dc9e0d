"""Instructions and conversations: from a row's format to tokens and the mask of what is learned."""
