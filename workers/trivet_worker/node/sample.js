// Sample: the function of a rehearsal. It is ours; a cell that waits knows no other.

exports.handler = async (event, context) => ({ event, request: context.awsRequestId });
