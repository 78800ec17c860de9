"""How a pass fits this machine: micro-batch, compiled code, too little memory."""
