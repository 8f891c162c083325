package benchmark

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/kvd-io/kvd/test/conformance/cluster"
)

// commandTimeout is how long a command may take; each takes a second or two on
// an idle machine.
const commandTimeout = time.Minute

// commands are command lines of the tool, by what they do. They are small:
// whether a request works does not depend on how many others there are.
var commands = []struct{ name, line string }{
	{"put", "put --total 2000 --clients 32 --conns 4 --key-space-size 500 --val-size 256"},
	{"put in order, compacted and hashed", "put --total 2000 --clients 8 --sequential-keys --key-space-size 2000 --compact-interval 200ms --compact-index-delta 100 --check-hashkv"},
	{"put at a rate", "put --total 200 --rate 500 --val-size 1024"},
	{"range of a key", "range foo --total 1000 --clients 16"},
	{"range, serializable", "range foo --total 1000 --clients 16 --consistency s"},
	{"range of everything", "range --prefix a --total 20 --limit 100"},
	{"range, counted", "range --prefix a --total 50 --count-only"},
	{"range, keys alone", "range --prefix a --total 20 --keys-only"},
	{"range as a stream", "range --prefix a --total 20 --stream"},
	{"range by pages", "range --prefix a --total 20 --paginate"},
	{"transactions of puts", "txn-put --total 500 --clients 8 --txn-ops 16 --key-space-size 1000"},
	{"transactions, mixed", "txn-mixed foo --total 1000 --clients 8 --rw-ratio 2 --key-space-size 100"},
	{"stm, repeatable reads", "stm --total 500 --clients 8 --keys 20 --keys-per-txn 3"},
	{"stm, serializable snapshots", "stm --total 300 --clients 4 --keys 20 --keys-per-txn 3 --isolation ss"},
	{"stm behind a lock", "stm --total 100 --clients 4 --keys 5 --stm-locker lock-client"},
	{"stm behind a lock of the server", "stm --total 100 --clients 4 --keys 5 --stm-locker lock-rpc"},
	{"keep-alives", "lease-keepalive --total 1000 --clients 8"},
	{"watch", "watch --streams 10 --watch-per-stream 20 --watched-key-total 10 --put-total 500"},
	{"watch what was", "watch-get --watchers 100 --streams 4 --events 8"},
	{"latency of watches", "watch-latency --put-total 300 --put-rate 300"},
	{"latency of watches with previous pairs", "watch-latency --put-total 300 --put-rate 300 --prevkv"},
}

// TestCommands runs all commands on one cluster, one after the other.
func TestCommands(t *testing.T) {
	c := cluster.Start(t, "--unsafe-no-fsync")
	endpoints := strings.Join(c.Endpoints(), ",")
	tool := cluster.Binary(t, "benchmark")
	for _, command := range commands {
		t.Run(command.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
			defer cancel()
			args := append([]string{"--endpoints", endpoints}, strings.Fields(command.line)...)
			out, err := exec.CommandContext(ctx, tool, args...).CombinedOutput()
			if err := judge(string(out), err); err != nil {
				t.Errorf("benchmark %s: %v\n%s", strings.Join(args, " "), err, end(string(out)))
			}
		})
	}
}

// judge returns what is wrong with the output of a command. The tool exits with
// 0 whatever the requests got, and lists their errors.
func judge(out string, err error) error {
	switch {
	case err != nil:
		return err
	case strings.Contains(out, "Error distribution"):
		return fmt.Errorf("requests failed")
	case !strings.Contains(out, "Requests/sec") && !strings.Contains(out, "Latency distribution"):
		return fmt.Errorf("there is no report")
	}
	return nil
}

// end returns the end of an output, without its progress bars.
func end(out string) string {
	var lines []string
	for line := range strings.Lines(out) {
		if i := strings.LastIndexByte(line, '\r'); i >= 0 {
			line = line[i+1:]
		}
		lines = append(lines, line[:min(len(line), 300)])
	}
	return strings.Join(lines[max(0, len(lines)-8):], "")
}
