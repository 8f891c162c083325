// Command kvd is a replicated key-value store. Without a subcommand it serves
// as one member of a cluster; its subcommands examine data and running nodes.
//
// # How a node is wired
//
// run executes the command line; a node goes through serve:
//
//	settings.Load    flags, environment and file become one settings.Settings
//	logsink.New      the log, which never waits for its reader
//	newDaemon        certificates, then the ports (frontdoor), then the node
//	daemon.assemble  metrics, node.New, and httpapi.Options with both
//	daemon.run       the signal loop
//
// newDaemon takes the ports before it looks at the data, so that a taken port
// or a wrong setting is reported within milliseconds and nothing was touched.
//
// daemon.run owns every part. It starts the node, which finds its place in the
// cluster on a goroutine of its own, serves probes meanwhile, and opens the
// door once the node is ready. Then it waits for the first of: a signal (SIGHUP
// reloads and waits on; SIGTERM and SIGINT stop), the end of the node (removed
// from the cluster, or a failure), or a listener that failed.
//
// # Invariants
//
//   - I1: Only main exits the process. Everything else returns an error, from
//     which exitCode makes the exit code; the one exception is a second signal,
//     for those who cannot wait for a stop.
//   - I2: Exit code 2 means that the command line or the settings are wrong,
//     and 3 that the data must not be used; supervisors do not restart after
//     either. A panic therefore exits by SIGABRT, not with Go's 2
//     (crashBySignal).
//   - I3: A stop takes less than ten seconds, after which supervisors kill. It
//     is a chain of bounded steps (stop), and a test holds their sum.
//   - I4: Nothing that runs while the node serves waits for the reader of
//     standard error or for the supervisor (logsink, supervisor).
//
// # Rejected
//
//   - Forking into the background and a PID file: supervisors do that better.
//   - Restarting a failed node in the process: its state in memory is suspect,
//     and the supervisor's restart is the same code path as any start.
package main
