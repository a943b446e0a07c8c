// A study's page has no controls of its own: it is ready when it is there.
start(async () => {});
