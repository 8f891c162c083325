// Package operator has the commands for those who run a cluster and for scripts that
// coordinate: members, the leader, states, leases, locks, and elections. They are made of
// the foundation in package cli, and are a package of their own because they share nothing
// else with the commands for keys.
//
// # The path of a command that runs another
//
//	options        what the flags say, with the text that others see
//	commandOf      the program, looked up before anybody has to wait
//	hold           a lease that is kept alive; the lock or the election belongs to it
//	runHolding     the command, in a process group of its own unless a terminal needs it
//	attend         signals to the command; its end, or the loss of the lock
//
// # Invariants
//
//   - L1: The command runs only while the lock is held, as far as this process can know.
//     Once it may be lost, the command is ended, with SIGTERM first. On Linux it also ends
//     with this process.
//   - L2: The status of the command is that of kvd. The only exceptions have a message: it
//     could not be run, or the lock was lost.
//   - L3: kvd top shows what happened between two looks. A member that was restarted
//     between them shows nothing rather than a wrong rate.
//
// # Rejected
//
//   - To give the command the lock's lease to keep alive itself. The point of the command
//     line is that any program can be run under a lock.
package operator

import (
	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/internal/cli"
)

// Commands returns the commands of this package.
func Commands(e cli.Environment) []*cobra.Command {
	sh := cli.NewShell(e)
	return []*cobra.Command{
		sh.ForData(lockCommand(sh)),
		sh.ForData(locksCommand(sh)),
		sh.ForData(electCommand(sh)),
		sh.ForData(leaseCommand(sh)),
		sh.ForClusters(statusCommand(sh)),
		sh.ForClusters(clusterCommand(sh)),
		sh.ForClusters(topCommand(sh)),
		sh.ForClusters(memberCommand(sh)),
		sh.ForClusters(leaderCommand(sh)),
	}
}
