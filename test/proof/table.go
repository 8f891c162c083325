package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kvd-io/kvd/internal/proof"
)

// row is a suite with all of its results.
type row struct{ proof.Result }

// sum adds the results up, suite by suite, in the order of the suites.
func sum(results []proof.Result) []row {
	var rows []row
	for _, r := range results {
		i := slices.IndexFunc(rows, func(have row) bool { return have.Suite == r.Suite })
		if i < 0 {
			rows = append(rows, row{r})
			continue
		}
		add(&rows[i].Result, &r)
	}
	place := func(r row) int {
		if i := slices.IndexFunc(suites, func(s suite) bool { return s.name == r.Suite }); i >= 0 {
			return i
		}
		return len(suites)
	}
	slices.SortStableFunc(rows, func(a, b row) int {
		if d := place(a) - place(b); d != 0 {
			return d
		}
		return strings.Compare(a.Suite, b.Suite)
	})
	return rows
}

func printTable(out io.Writer, rows []row) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "suite\truns\toperations\ttime\tviolations\tcontrols caught")
	for _, r := range rows {
		kind := "real"
		if r.Simulated {
			kind = "simulated"
		}
		controls := "-"
		if r.Controls > 0 {
			controls = fmt.Sprintf("%d of %d", r.Caught, r.Controls)
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%v %s\t%d\t%s\n", r.Suite, r.Runs, r.Operations, time.Duration(r.Seconds*float64(time.Second)).Round(time.Second), kind, r.Violations, controls)
	}
	_ = w.Flush() // to the standard output
}

// promise is one of the README's: the name under which results speak of it, and the tests
// that hold it, first of all.
type promise struct {
	name, text string
	tests      []string
}

var promises = []promise{
	{"linearizable", "Linearizable by default, through crashes, pauses, partitions, and changes of members",
		[]string{"TestSimulation", "TestContractSimulation", "TestMixedFaces", "TestKillUnderLoad"}},
	{"durable", "What was acknowledged survives the loss of power, of any member or of all at once", []string{"TestPowerCutOfTheCluster", "TestPowerCutAlone", "TestNthSync"}},
	{"fails safe", "Damaged files are refused or repaired; nothing acknowledged is lost silently",
		[]string{"TestCorruptionMatrix", "TestCorruptionMatrixOfTheStore", "TestDamagedFiles", "TestDamagedMember", "TestRottenBlockIsMendedFromOthers"}},
	{"exactly once", "A request with an idempotency key takes effect once", []string{"TestContractSimulation", "TestEachRequestTakesEffectOnce"}},
	{"watch", "A watch has no gap, no duplicate, and no change that was not committed", []string{"TestContractSimulation", "TestMixedFaces", "TestWatchMovesOn"}},
	{"ids", "The id of a member never returns, and an empty disk never takes part as one", []string{"TestSimulation", "TestTwoLostDisksFoundAnotherCluster", "TestWipedMemberNeitherVotesNorAcknowledges"}},
	{"learners first", "A new member is a learner, without a vote, until it has caught up", []string{"TestMemberReplacement", "TestAddedMembersAreLearnersWithoutNonce", "TestMemberAddWaits"}},
	{"leases", "Leases are hints, and fencing tokens are safe: a stale one is refused", []string{"TestContractSimulation", "TestPausedHolderIsFenced"}},
	{"bounded", "Memory stays bounded under abuse, and others are served", []string{"TestAbuse", "TestBatchOfASlowReaderIsBounded", "TestStalledClientsHoldTheirPositions"}},
	{"bounded disk", "The log, snapshots, and history on disk stay bounded, and a store at its quota refuses to grow",
		[]string{"TestSnapshotBoundsTheLog", "TestRaftexampleBugFilesNeverPurged", "TestQuota"}},
	{"writes resume", "Writes resume within 30 election timeouts after faults end", []string{"TestSimulation", "TestKilledLeaderIsMissedAtOnce"}},
	{"replicas agree", "Replicas have equal states at equal log indexes, and compare them in production", []string{"TestSimulation", "TestMixedFaces"}},
}

const (
	promisesBegin = "<!-- promises: written by go run ./test/proof -promises README.md -->\n"
	promisesEnd   = "<!-- promises: end -->"
	controlsBegin = "<!-- controls: written by go run ./test/proof -controls docs/testing.md -->\n"
	controlsEnd   = "<!-- controls: end -->"
)

// promisesTable says, for each promise, in how much no violation was found, and what all
// suites did together.
func promisesTable(results []proof.Result) (string, error) {
	var b strings.Builder
	b.WriteString("| promise | what the last runs of its suites saw | held by, among others |\n| --- | --- | --- |\n")
	for _, p := range promises {
		var total proof.Result
		for _, r := range results {
			if !slices.Contains(r.Promises, p.name) {
				continue
			}
			add(&total, &r)
		}
		if total.Violations > 0 {
			return "", fmt.Errorf("%d violations of %q: fix them first", total.Violations, p.text)
		}
		if total.Runs == 0 {
			return "", fmt.Errorf("no result speaks of %q: run all suites (make proof)", p.text)
		}
		fmt.Fprintf(&b, "| %s | no violation found in %s", p.text, number(total.Runs, "run"))
		if total.Operations > 0 {
			fmt.Fprintf(&b, " with %s", number(total.Operations, "judged operation"))
		}
		fmt.Fprintf(&b, " | `%s` |\n", strings.Join(p.tests, "`, `"))
	}
	b.WriteString("\n" + totals(results))
	return b.String(), nil
}

// totals is what all suites did together.
func totals(results []proof.Result) string {
	var simulated, real proof.Result
	for _, r := range results {
		if r.Simulated {
			add(&simulated, &r)
		} else {
			add(&real, &r)
		}
	}
	return fmt.Sprintf("All suites together: %s with %s in %.0f hours of simulated time;\n"+
		"%s with %s in %.0f minutes of real time. Of %s that were planted, the suites caught %d. No violation found is not a proof.\n",
		number(simulated.Runs, "run"), number(simulated.Operations, "judged operation"), simulated.Seconds/3600,
		number(real.Runs, "run"), number(real.Operations, "judged operation"), real.Seconds/60,
		number(simulated.Controls+real.Controls, "bug"), simulated.Caught+real.Caught)
}

// number writes a count of things.
func number(n int64, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return digits(n) + " " + thing
}

// digits writes a number with commas between thousands.
func digits(n int64) string {
	out := strconv.FormatInt(n, 10)
	for at := len(out) - 3; at > 0; at -= 3 {
		out = out[:at] + "," + out[at:]
	}
	return out
}

// controlsTable says, for each planted bug, how soon it was noticed.
func controlsTable(results []proof.Result) string {
	var b strings.Builder
	b.WriteString("| planted bug | noticed by | seeds or cases | seconds | broken |\n| --- | --- | --- | --- | --- |\n")
	for _, r := range results {
		if r.Planted == "" {
			continue
		}
		seconds := "< 0.01"
		if r.Seconds >= 0.01 {
			seconds = fmt.Sprintf("%.2f", r.Seconds)
		}
		fmt.Fprintf(&b, "| %s | `%s` | %d | %s | %s |\n", r.Planted, r.Test, r.Tries, seconds, cmp.Or(r.Broken, "–"))
	}
	return b.String()
}

func writePromises(path string, results []proof.Result) error {
	table, err := promisesTable(results)
	if err != nil {
		return err
	}
	return replaceBetween(path, promisesBegin, table, promisesEnd)
}

func writeControls(path string, results []proof.Result) error {
	return replaceBetween(path, controlsBegin, controlsTable(results), controlsEnd)
}

// replaceBetween replaces what is between two markers in a file.
func replaceBetween(path, begin, text, end string) error {
	have, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(have), begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		return errors.New(path + " lacks the markers " + begin + end)
	}
	return os.WriteFile(path, []byte(before+begin+text+end+after), 0o644)
}
