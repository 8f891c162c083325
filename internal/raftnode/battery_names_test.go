package raftnode

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// batteries are the acceptance tests of the systems that kvd descends from, by their
// names there, and the tests here that prove the same. A test that makes several demands has
// a row for each. A test of TestKeyValue has the name of its battery behind a slash.
var batteries = []struct{ group, name, test string }{
	{"raft", "initial election", "TestInitialElection"},
	{"raft", "re-election: a returning leader does not disturb", "TestReElection"},
	{"raft", "re-election: nobody leads without a quorum", "TestReElection"},
	{"raft", "many elections", "TestManyElections"},
	{"raft", "basic agreement", "TestBasicAgreement"},
	{"raft", "RPC bytes", "TestRPCBytes"},
	{"raft", "follower failure", "TestFollowerFailure"},
	{"raft", "leader failure", "TestLeaderFailure"},
	{"raft", "fail agree", "TestFailAgree"},
	{"raft", "fail no agree", "TestFailNoAgree"},
	{"raft", "concurrent starts", "TestConcurrentStarts"},
	{"raft", "rejoin of a partitioned leader", "TestRejoinOfPartitionedLeader"},
	{"raft", "backup over wrong logs", "TestBackupOverWrongLogs"},
	{"raft", "RPC counts of an election", "TestRPCCounts"},
	{"raft", "RPC counts of an idle second", "TestRPCCounts"},
	{"raft", "persist 1", "TestPersist1"},
	{"raft", "persist 2", "TestPersist2"},
	{"raft", "persist 3", "TestPersist3"},
	{"raft", "figure 8", "TestFigure8"},
	{"raft", "unreliable agree", "TestUnreliableAgree"},
	{"raft", "figure 8 unreliable", "TestFigure8Unreliable"},
	{"raft", "reliable churn", "TestReliableChurn"},
	{"raft", "unreliable churn", "TestUnreliableChurn"},
	{"raft", "snapshot basic", "TestSnapshotBasic"},
	{"raft", "snapshot install", "TestSnapshotInstall"},
	{"raft", "install unreliable", "TestSnapshotInstallUnreliable"},
	{"raft", "install with crash", "TestSnapshotInstallCrash"},
	{"raft", "install unreliable with crash", "TestSnapshotInstallUnreliableCrash"},
	{"raft", "all crash", "TestAllCrash"},
	{"raft", "snapshot init", "TestSnapshotInit"},

	{"state machine", "basic", "TestSubmitBasic"},
	{"state machine", "concurrent", "TestSubmitConcurrent"},
	{"state machine", "leader failure", "TestSubmitLeaderFailure"},
	{"state machine", "leader partition: submits in the minority do not succeed", "TestSubmitLeaderPartition"},
	{"state machine", "leader partition: they return after healing", "TestSubmitLeaderPartition"},
	{"state machine", "restart replay", "TestSubmitRestartReplay"},
	{"state machine", "shutdown", "TestSubmitShutdown"},
	{"state machine", "restart then submit", "TestSubmitAfterRestart"},
	{"state machine", "snapshot bounds the log", "TestSnapshotBoundsTheLog"},

	{"key-value", "basic", "TestKeyValue/basic"},
	{"key-value", "speed", "TestKeyValueSpeed"},
	{"key-value", "many clients", "TestKeyValue/many clients"},
	{"key-value", "unreliable", "TestKeyValue/unreliable"},
	{"key-value", "unreliable on one key: each piece once", "TestKeyValue/unreliable, one key"},
	{"key-value", "unreliable on one key: in each client's order", "TestKeyValue/unreliable, one key"},
	{"key-value", "one partition: progress in the majority", "TestKeyValueOnePartition"},
	{"key-value", "one partition: none in the minority", "TestKeyValueOnePartition"},
	{"key-value", "one partition: completion after healing", "TestKeyValueOnePartition"},
	{"key-value", "many partitions with one client", "TestKeyValue/many partitions, one client"},
	{"key-value", "many partitions with many clients", "TestKeyValue/many partitions, many clients"},
	{"key-value", "persist with one client", "TestKeyValue/persist, one client"},
	{"key-value", "persist concurrent", "TestKeyValue/persist, concurrent"},
	{"key-value", "persist unreliable", "TestKeyValue/persist, unreliable"},
	{"key-value", "persist with partitions", "TestKeyValue/persist, partitions"},
	{"key-value", "persist, all together", "TestKeyValue/persist, all together"},
	{"key-value", "linearizable with 15 clients on 7 nodes", "TestKeyValue/linearizable"},
	{"key-value", "snapshot RPC", "TestKeyValueSnapshotRPC"},
	{"key-value", "snapshot size", "TestKeyValueSnapshotSize"},
	{"key-value", "snapshots with recovery", "TestKeyValue/snapshots, recovery"},
	{"key-value", "snapshots, many clients", "TestKeyValue/snapshots, many clients"},
	{"key-value", "snapshots, unreliable", "TestKeyValue/snapshots, unreliable"},
	{"key-value", "snapshots, partitions", "TestKeyValue/snapshots, partitions"},
	{"key-value", "snapshots, linearizable", "TestKeyValue/snapshots, linearizable"},

	{"ours", "power loss: bootstrap", "TestOpenBootstrapCrashAtEachStep"},
	{"ours", "power loss: bootstrap of a member that has voted", "TestOpenBootstrapKeepsTermAndVote"},
	{"ours", "power loss: first start", "TestPowerCutInFirstStart"},
	{"ours", "power loss: first start, on a real disk", "TestPowerCutOfTheCluster"},
	{"ours", "power loss: segment cut, on a real disk", "TestPowerCutAlone"},
	{"ours", "power loss: snapshot save", "TestSnapshotCrashAtEachStep"},
	{"ours", "power loss: install", "TestSnapshotInstallPowerCut"},
	{"ours", "power loss: install, on a real disk", "TestPowerCutOfAFollower"},
	{"ours", "power loss: join", "TestPowerCutInJoin"},
	{"ours", "power loss: join, on a real disk", "TestPowerCutOfAJoiningMember"},
	{"ours", "power loss: one save", "TestGuardPowerLossInOneSave"},
	{"ours", "membership: learner, promote, remove", "TestMemberReplacement"},
	{"ours", "membership: remove the leader", "TestRemoveLeader"},
	{"ours", "membership: remove and add under partition", "TestMemberChangesUnderPartition"},
	{"ours", "membership: replace a lost disk", "TestReplaceLostDisk"},
	{"ours", "leadership transfer", "TestLeadershipTransfer"},
	{"ours", "watch across everything", "TestContractSimulation"},
	{"ours", "watch across everything, real processes", "TestMixedFaces"},
	{"ours", "leases and locks with pauses", "TestPausedHolderIsFenced"},
	{"ours", "ReadIndex on followers", "TestContractSimulation"},
	{"ours", "one-way partitions", "TestOneWayPartition"},
	{"ours", "full disk", "TestDrillsFullDisk"},
	{"ours", "slow disk", "TestSlowDisk"},
	{"ours", "hung disk", "TestVirtualClusterDiskStall"},
	{"ours", "hung disk, real processes", "TestStalledDiskOfTheLeader"},
	{"ours", "SIGSTOP", "TestPausedLeaderServesNoStaleRead"},
	{"ours", "log sink blocked", "TestFullPipeOnStandardError"},
	{"ours", "overload", "TestAbuse"},

	{"bugs", "raftexample: 204 before the commit", "TestRaftexampleBug204BeforeCommit"},
	{"bugs", "raftexample: errors ignored", "TestRaftexampleBugErrorsIgnored"},
	{"bugs", "raftexample: stale reads", "TestRaftexampleBugStaleReads"},
	{"bugs", "raftexample: values that are not UTF-8", "TestRaftexampleBugNonUTF8Values"},
	{"bugs", "raftexample: ids of changes begin anew", "TestRaftexampleBugConfChangeIDsRestart"},
	{"bugs", "raftexample: URLs of members forgotten", "TestRaftexampleBugMemberURLsForgotten"},
	{"bugs", "raftexample: snapshots in memory", "TestRaftexampleBugSnapshotInMemory"},
	{"bugs", "raftexample: files never purged", "TestRaftexampleBugFilesNeverPurged"},
	{"bugs", "etcd 13196, 20967: removed members return", "TestEtcdBug13196RemovedMembersReturn"},
	{"bugs", "etcd 13766: crash between data and applied index", "TestEtcdBug13766CrashBetweenDataAndIndex"},
	{"bugs", "etcd 14370: acknowledged before the sync", "TestEtcdBug14370AcknowledgedBeforeSync"},
	{"bugs", "etcd 18055: two snapshots in a row", "TestEtcdBug18055TwoSnapshotsInARow"},
	{"bugs", "etcd 20418: stale read after a retry", "TestEtcdBug20418StaleReadAfterRetry"},
	{"bugs", "etcd 22214: a full log pipe stops the process", "TestFullPipeOnStandardError"},
}

// inherited is how many demands the batteries of those systems make.
const inherited = 63

// TestBatteries finds the test of each battery in the source, and counts.
func TestBatteries(t *testing.T) {
	tests := testsBelow(t, filepath.Join("..", ".."))
	have, all := make(map[string]int), make(map[string]int)
	seen := make(map[string]bool)
	for _, b := range batteries {
		if row := b.group + ": " + b.name; seen[row] {
			t.Errorf("two rows for %s", row)
		} else {
			seen[row] = true
		}
		all[b.group]++
		name, sub, nested := strings.Cut(b.test, "/")
		known := !nested || slices.ContainsFunc(kvBatteries, func(k kvBattery) bool { return k.name == sub })
		if !tests[name] || !known {
			t.Errorf("battery %s: %s: there is no %s", b.group, b.name, b.test)
			continue
		}
		have[b.group]++
	}
	for _, group := range []string{"raft", "state machine", "key-value", "ours", "bugs"} {
		t.Logf("batteries: %s: %d of %d", group, have[group], all[group])
	}
	if n := all["raft"] + all["state machine"] + all["key-value"]; n != inherited {
		t.Errorf("the list has %d inherited demands, want %d", n, inherited)
	}
}

var testFunc = regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)

// testsBelow returns the names of all tests below a directory.
func testsBelow(t *testing.T, root string) map[string]bool {
	t.Helper()
	names := make(map[string]bool)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range testFunc.FindAllSubmatch(text, -1) {
			names[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
