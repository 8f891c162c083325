package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/kvd-io/kvd/internal/proof"
)

// suite is one go test.
type suite struct {
	name string
	pkgs string // separated by spaces
	// tests are the names of its tests, or patterns that match whole names. A name has to
	// exist in one of the packages, and in no other of them.
	tests []string
	env   []string
	// whole means that its tests are counted as runs. The tests of the other suites
	// record what they saw themselves.
	whole    bool
	promises []string
}

// pattern matches the suite's tests.
func (s *suite) pattern() string { return "^(" + strings.Join(s.tests, "|") + ")$" }

// full asks the tests of real processes for more than a quick look.
var full = []string{"KVD_E2E=full"}

// huge asks them for all they have.
var huge = []string{"KVD_E2E=huge"}

// contractSeeds make those situations of the contract a demand that 72 of 1000 seeds reach.
const contractSeeds = 280

// suites are in the order of what they cost, the cheap ones first.
var suites = []suite{
	{name: "fuzz corpora", pkgs: "./...", tests: []string{"Fuzz.*"}, whole: true},
	{
		name: "boot guard", pkgs: "./internal/datadir", whole: true, promises: []string{"fails safe", "durable"},
		tests: []string{"TestGuard.*", "TestSnapshot.*", "TestIdentity.*", "TestWatermark.*", "TestLog.*"},
	},
	{name: "corruption matrix: log and identity", pkgs: "./internal/datadir", tests: []string{"TestCorruptionMatrix", "TestCorruptionMatrixOfOlderCopies", "TestControlCorruptionMatrix"}},
	{name: "corruption matrix: store", pkgs: "./internal/node", tests: []string{"TestCorruptionMatrixOfTheStore", "TestControlCorruptionMatrixOfTheStore"}},
	{
		name: "scrub and repair", pkgs: "./internal/node", whole: true, promises: []string{"fails safe"},
		tests: []string{"TestRottenBlockIsMendedFromOthers", "TestRottenBlockMetByARequestIsRepaired", "TestOnlyReplicaIsNotRebuilt", "TestDamagedMemberWaitsForTheQuorum", "TestDamagedStoreIsRebuiltFromAnotherMember"},
	},
	{
		name: "founding and lost disks", pkgs: "./internal/node", whole: true, promises: []string{"ids"},
		tests: []string{"TestLostDiskIsReplaced", "TestLostDiskUnderAnotherNameIsRefused", "TestTwoLostDisksFoundAnotherCluster"},
	},
	{name: "controls of the founding", pkgs: "./internal/founding", tests: []string{"TestFoundingSimulationFindsPlantedBugs"}},
	{
		name: "learners first", pkgs: "./internal/roster ./internal/raftnode ./test/e2e", whole: true, promises: []string{"learners first"},
		tests: []string{"TestAddedMembersAreLearnersWithoutNonce", "TestMemberReplacement", "TestPromotionRightAfterADeath", "TestLearnerDoesNotSeek", "TestMemberAddWaits"},
	},
	{
		name: "bounded disk", pkgs: "./internal/raftnode ./internal/datadir ./internal/kvstore ./test/e2e", whole: true, promises: []string{"bounded disk"},
		tests: []string{"TestSnapshotBoundsTheLog", "TestLogPurgeKeepsTwoSnapshotsAndTheLogFromTheOlder", "TestQuota", "TestCompactionTarget", "TestMaintainIsBounded", "TestRaftexampleBugFilesNeverPurged"},
	},
	{name: "virtual time: replicas", pkgs: "./internal/raftnode", tests: []string{"TestVirtual.*"}, whole: true},
	{
		name: "virtual time: memory", pkgs: "./internal/httpapi ./internal/httpapi/feed ./internal/pace ./internal/budget ./internal/lessor ./internal/etcdapi", whole: true, promises: []string{"bounded"},
		tests: []string{
			"TestBatchWaitsForRoom", "TestBatchOfASlowReaderIsBounded", "TestBatchesShareTheMemory", "TestBatchesWithoutMemory", "TestBodiesArriveWithoutAPlace",
			"TestUnreadAnswers", "TestSnapshotsNeedARate", "TestRequestsWaitForAPlace", "TestWatchOfAStalledClient", "TestStalledClientsHoldTheirPositions", "TestLargeRevisionInPieces",
			"TestProgressWithoutMemory", "TestBodyWithoutRoom", "TestWaitingClaims", "TestShareLeavesRoom", "TestWaitingIsBounded", "TestLargeRequestIsClaimedFirst",
		},
	},
	{
		name: "virtual time: everything else", whole: true,
		pkgs: "./internal/httpapi ./internal/frontdoor ./internal/pace ./internal/lessor ./internal/kvstore ./internal/kvstore/engine ./internal/logsink ./internal/scrub ./internal/access ./internal/node ./internal/etcdapi ./client",
		tests: []string{
			"TestBatchOfASilentClientEnds", "TestSlowBodyIsCutOff", "TestUnwantedBodyDoesNotHoldTheAnswer", "TestSlowHeaderIsCutOff", "TestSilentConnectionsAreClosed",
			"TestPanicInAPipeline", "TestBodyDeadlineEndsWithTheBody", "TestSlowReadersAreCutOff", "TestPipelinersThatDoNotReadAreCutOff", "TestWatchLasts",
			"TestConnectionBeyondTheLimitIsShort",
			"TestBodies", "TestBodyEndsInTime", "TestAnswers", "TestBackupsYieldToRequests",
			"TestBatches", "TestRepeatsUntilAnswered", "TestNoAnswer", "TestHangingLeader", "TestPost", "TestLeaseEndsAfterTTL", "TestKeepAliveMovesTheDeadline",
			"TestNewLeaderGivesFullTTL", "TestDeposedLeaderEndsNothing", "TestKeepAliveNeedsProof", "TestProofComesAfterTheRenewal", "TestGrantSeenElsewhereFirst",
			"TestNoExtensionAfterExpiry", "TestExpiryMeansItsGrant", "TestExpiriesAreSpread", "TestChangesDuringLoading", "TestRandomTenures", "TestSortByDeadline",
			"TestAwaitLock", "TestNothingCompactsWhileOpening",
			"TestStuckReaderDoesNotStopTheLogger", "TestCloseOfAStuckSinkIsBounded", "TestDeadReaderDoesNotStopTheLogger",
			"TestPassTakesMostOfTheInterval", "TestFullDiskDoesNotRepeatThePass", "TestSmallStoreIsReadOnceAWeek", "TestRestartsDoNotBeginAnew", "TestDamageEndsTheRun", "TestCircumstancesAreNoDamage",
			"TestFriendTakesOver", "TestFriendWaitsForAComparison", "TestEveryLoginMakesFamiliar", "TestGuessesTakeAFifth", "TestManyAtOnce", "TestClientThatLeaves",
			"TestManyUsersOfOneAddress", "TestManyGuessesOfOneAddress", "TestFloodKeepsNoFriendOut", "TestFairShare",
			"TestFreshnessBoundsStaleness", "TestAcksGoAlong", "TestAckFails", "TestStreamsEndWithoutLeader", "TestRenewalsSkipHangingNodes",
		},
	},
	{
		// Those that TestBatteries lists for package raftnode.
		name: "batteries", pkgs: "./internal/raftnode", whole: true, promises: []string{"linearizable", "writes resume"},
		tests: []string{
			"TestInitialElection", "TestReElection", "TestManyElections", "TestBasicAgreement", "TestRPCBytes", "TestFollowerFailure", "TestLeaderFailure", "TestFailAgree",
			"TestFailNoAgree", "TestConcurrentStarts", "TestRejoinOfPartitionedLeader", "TestBackupOverWrongLogs", "TestRPCCounts", "TestPersist[123]", "TestFigure8",
			"TestUnreliableAgree", "TestFigure8Unreliable", "TestReliableChurn", "TestUnreliableChurn", "TestSnapshotBasic", "TestSnapshotInstall",
			"TestSnapshotInstallUnreliable", "TestSnapshotInstallCrash", "TestSnapshotInstallUnreliableCrash", "TestAllCrash", "TestSnapshotInit",
			"TestSubmit(Basic|Concurrent|LeaderFailure|LeaderPartition|RestartReplay|AfterRestart|Shutdown)", "TestSnapshotBoundsTheLog",
			"TestKeyValue(Speed|OnePartition|SnapshotRPC|SnapshotSize)?",
			"TestSnapshotInstallPowerCut", "TestMemberReplacement", "TestRemoveLeader", "TestReplaceLostDisk", "TestLeadershipTransfer", "TestOneWayPartition",
			"TestLateLeaderOfAnOldTerm", "TestMemberChangesUnderPartition", "TestOpenBootstrapCrashAtEachStep", "TestPowerCutIn(FirstStart|Join)", "TestSlowDisk",
			"TestEtcdBug13196RemovedMembersReturn", "TestEtcdBug14370AcknowledgedBeforeSync", "TestEtcdBug20418StaleReadAfterRetry",
		},
		env: []string{"KVD_SIM_RUNS=10"},
	},
	{name: "controls of the simulation", pkgs: "./internal/raftnode", tests: []string{"Test(Contract)?Control.*"}},
	{name: "simulation", pkgs: "./internal/raftnode", tests: []string{"TestSimulation", "TestSimulationRegressions"}, env: []string{"KVD_SIM_RUNS=2000"}},
	{name: "simulation of the contract", pkgs: "./internal/raftnode", tests: []string{"TestContractSimulation"}, env: []string{fmt.Sprint("KVD_SIM_RUNS=", contractSeeds)}},
	{
		name: "real processes: two APIs, one history", pkgs: "./test/e2e", env: append(huge, "KVD_MIXED=5000"), whole: true, promises: []string{"linearizable", "watch", "replicas agree"},
		tests: []string{"TestMixedFaces", "TestMixedFacesOfOne", "TestMixedFacesOfFive"},
	},
	{
		name: "real processes: kills, pauses, restarts", pkgs: "./test/e2e", env: full, whole: true, promises: []string{"linearizable", "durable"},
		tests: []string{"TestKillUnderLoad", "TestContract", "TestPausedLeaderServesNoStaleRead", "TestRollingRestart", "TestSnapshotKilledWhileCatchingUp", "TestMemberDownDuringChangeFindsItsWayBack"},
	},
	{
		name: "real processes: a leader is gone", pkgs: "./test/e2e", env: full, whole: true, promises: []string{"writes resume"},
		tests: []string{"TestKilledLeaderIsMissedAtOnce", "TestKilledLeaderIsMissedAtOnceWithTLS", "TestStoppedLeaderIsNotMissed", "TestAllKilledElectAtOnce", "TestFailedFsyncOfTheLeader", "TestStalledDiskOfTheLeader"},
	},
	{name: "real processes: repeats", pkgs: "./test/e2e", tests: []string{"TestEachRequestTakesEffectOnce", "TestContractExactlyOnce"}, env: full, whole: true, promises: []string{"exactly once"}},
	{name: "real processes: locks", pkgs: "./test/e2e", tests: []string{"TestLockOutlivesPauses", "TestPausedHolderIsFenced", "TestSuspendedHolderEndsItsCommand"}, env: full, whole: true, promises: []string{"leases"}},
	{name: "real processes: watches", pkgs: "./test/e2e", tests: []string{"TestWatchMovesOn"}, env: full, whole: true, promises: []string{"watch"}},
	{
		name: "real processes: members", pkgs: "./test/e2e", env: full, whole: true, promises: []string{"ids"},
		tests: []string{"TestWipedMemberNeitherVotesNorAcknowledges", "TestRemovedWhileDown", "TestLeaderRemovesItself", "TestRaftexampleBugConfChangeIDsRestart"},
	},
	{name: "real processes: failed sync", pkgs: "./test/e2e", tests: []string{"TestFailedFsync"}, env: full, whole: true, promises: []string{"durable"}},
	{name: "N-th sync failing, and kill at it", pkgs: "./test/e2e", tests: []string{"TestNthSync", "TestControlNthSync"}, env: full},
	{name: "power cuts", pkgs: "./test/e2e", tests: []string{"TestPowerCut.*", "TestControlPowerCut"}, env: append(full, "KVD_POWER_CUTS=100")},
	{name: "damaged files, real processes", pkgs: "./test/e2e", tests: []string{"TestDamagedFiles", "TestDamagedFilesInMemory", "TestDamagedMember", "TestControlDamagedFiles"}, env: huge},
	// The short form: docs/testing.md (Known limits) says what the long one finds.
	{name: "abuse", pkgs: "./test/e2e", tests: []string{"TestAbuse"}, env: full, whole: true, promises: []string{"bounded"}},
	{name: "control of the abuse", pkgs: "./test/e2e", tests: []string{"TestControlAbuse", "TestControlAbuseRate"}, env: huge},
}

// runAll runs the suites, and leaves their results in the directory.
func runAll(ctx context.Context, o options, only *regexp.Regexp) error {
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return err
	}
	begin := time.Now()
	for _, s := range suites {
		if !only.MatchString(s.name) {
			continue
		}
		left := o.limit - time.Since(begin)
		fmt.Printf("== %s (%v left)\n", s.name, left.Round(time.Second))
		if left <= 0 {
			fmt.Println("   not run: no time is left")
			continue
		}
		own := s.dir(dir)
		if err := os.RemoveAll(own); err != nil {
			return err
		}
		if err := s.start(ctx, own, left); err != nil {
			return err
		}
	}
	fmt.Printf("== all suites took %v\n\n", time.Since(begin).Round(time.Second))
	return nil
}

// dir is where a suite leaves its results.
func (s *suite) dir(all string) string {
	return filepath.Join(all, strings.Trim(regexp.MustCompile("[^a-zA-Z]+").ReplaceAllString(s.name, "-"), "-"))
}

// readAll returns the results of all suites.
func readAll(dir string) (out []proof.Result, err error) {
	for i := range suites {
		s := &suites[i]
		results, err := proof.Read(s.dir(dir))
		if err != nil {
			return nil, err
		}
		for _, r := range results {
			if r.Suite == "" {
				r.Suite, r.Promises = s.name, s.promises
			}
			out = append(out, r)
		}
	}
	return out, nil
}

// event is a line of go test -json.
type event struct {
	Action, Package, Test, Output string
}

// counted is what a suite's tests came to.
type counted struct{ passed, failed, skipped int64 }

// start runs the suite and records its result.
func (s *suite) start(ctx context.Context, dir string, limit time.Duration) error {
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	args := []string{"test", "-json", "-vet=off", "-count=1", "-timeout", limit.String(), "-run", s.pattern()}
	cmd := exec.CommandContext(ctx, "go", append(args, strings.Fields(s.pkgs)...)...)
	cmd.Env = append(append(os.Environ(), proof.Variable+"="+dir), s.env...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	c, err := count(out, os.Stdout)
	if err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		c.failed = max(c.failed, 1) // a package that does not build has no tests
	}
	fmt.Printf("   %d tests passed, %d failed, %d skipped, in %v\n", c.passed, c.failed, c.skipped, time.Since(begin).Round(time.Second))
	r := proof.Result{Suite: s.name, Violations: c.failed, Seconds: time.Since(begin).Seconds(), Promises: s.promises, Replay: "go run ./test/proof -only '" + regexp.QuoteMeta(s.name) + "'"}
	switch {
	case s.whole:
		r.Runs = c.passed + c.failed
	case c.failed > 0:
		// A test that fails records that itself, unless it never came to it.
	default:
		return nil
	}
	return proof.Write(dir, r)
}

// keptLines is how much is shown of what a test said: what it said last, and before that the
// lines of the test itself, which say what is wrong. A goroutine dump would push them out.
const keptLines = 100

// shorten drops lines of a test that says much.
func shorten(said []string) []string {
	if len(said) <= 3*keptLines {
		return said
	}
	early := said[:len(said)-keptLines]
	kept := slices.DeleteFunc(slices.Clone(early), func(line string) bool { return !strings.Contains(line, "_test.go:") })
	return append(kept[:min(len(kept), keptLines)], said[len(early):]...)
}

// count reads the output of go test -json, and passes on what people have to see: why
// something failed, and what could not be tested.
func count(in io.Reader, out io.Writer) (c counted, err error) {
	said := make(map[string][]string)
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 8<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue
		}
		name := e.Package + "." + e.Test
		if e.Action == "output" {
			if strings.Contains(e.Output, "NOT TESTED") || strings.Contains(e.Output, "NOT RUN") {
				fmt.Fprint(out, "   "+strings.TrimSpace(e.Output)+"\n")
			}
			said[name] = shorten(append(said[name], e.Output))
			continue
		}
		if e.Test == "" || strings.Contains(e.Test, "/") {
			continue
		}
		switch e.Action {
		case "pass":
			c.passed++
		case "skip":
			c.skipped++
		case "fail":
			c.failed++
			fmt.Fprintf(out, "   FAILED: %s\n%s", name, strings.Join(said[name], ""))
		}
		delete(said, name)
	}
	return c, lines.Err()
}
