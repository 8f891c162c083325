package main

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// neighbor matches words that refer to a text before. HELP texts are read one at a
// time. Many a pronoun has its noun in the same sentence; a HELP text can do
// without.
var neighbor = regexp.MustCompile(`(?i)\b(those|these|its|it|them|the same again|the former|the latter)\b`)

// helpProblems reports HELP texts of kvd's metrics that do not stand alone.
func helpProblems(cat catalog) []string {
	var out []string
	first := make(map[string]string)
	for _, name := range slices.Sorted(maps.Keys(cat)) {
		if !strings.HasPrefix(name, "kvd_") && etcdAliases[name] == "" && late[name].kind == "" {
			continue // registered by the Go runtime, the process collector or etcd's packages
		}
		help := cat[name].help
		if own := strings.HasPrefix(name, "kvd_"); own || strings.HasPrefix(help, "Alias") {
			if other, ok := first[help]; ok {
				out = append(out, fmt.Sprintf("%s and %s have the same HELP %q", other, name, help))
			}
			first[help] = name
		}
		if etcdHelp[name] {
			continue
		}
		if help == "" || help[0] < 'A' || help[0] > 'Z' || !strings.HasSuffix(help, ".") {
			out = append(out, fmt.Sprintf("the HELP of %s is not a sentence: %q", name, help))
		}
		if word := neighbor.FindString(help); word != "" {
			out = append(out, fmt.Sprintf("the HELP of %s refers to something else by %q: %q", name, word, help))
		}
	}
	return out
}

// etcdHelp has the aliases whose HELP is etcd's, because a package of etcd that
// runs in kvd registers them.
var etcdHelp = map[string]bool{
	"etcd_disk_wal_fsync_duration_seconds":   true,
	"etcd_network_peer_sent_bytes_total":     true,
	"etcd_network_peer_received_bytes_total": true,
}

// TestHelpProblemsAreFound plants one of each.
func TestHelpProblemsAreFound(t *testing.T) {
	for help, want := range map[string]string{
		"Size of those entries.":               `by "those"`,
		"Writes that had to ask for it.":       `by "it"`,
		"kvd_ready under another name.":        "not a sentence",
		"1 while a leader is known.":           "not a sentence",
		"Commands that were applied":           "not a sentence",
		"":                                     "not a sentence",
		"Number of live keys.":                 "the same HELP",
		"Number of keys, and the same again.":  `by "the same again"`,
		"Log entries that the member has read": "not a sentence",
	} {
		cat := catalog{"kvd_a": {help: "Number of live keys."}, "kvd_b": {help: help}, "go_goroutines": {help: "those"}}
		if got := helpProblems(cat); len(got) != 1 || !strings.Contains(got[0], want) {
			t.Errorf("%q: got %q, want %q", help, got, want)
		}
	}
	if got := helpProblems(catalog{"kvd_a": {help: "Number of live keys."}}); len(got) != 0 {
		t.Errorf("a good text: %q", got)
	}
}
