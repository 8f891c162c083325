package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/transfer"
)

const (
	// completionTimeout is short: somebody waits with a finger on the Tab key.
	completionTimeout = time.Second
	maxCompletions    = 64
)

// completeKey completes the first argument of a command as a key. It proposes one
// level at a time, up to the next slash, like a shell does for files. If that fails,
// it proposes nothing and says nothing: a message would land in the line being typed.
func (sh *shell) completeKey(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault // a value may be a file
	}
	s, err := sh.open(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(context.Background(), completionTimeout)
	defer cancel()
	names := s.level(ctx, typed)
	directive := cobra.ShellCompDirectiveNoFileComp
	if len(names) == 1 && strings.HasSuffix(names[0], "/") {
		directive |= cobra.ShellCompDirectiveNoSpace
	}
	return names, directive
}

// level returns the keys with a prefix, cut after the next slash. It asks for a key
// at a time and then skips everything below the same slash, so that a level above
// millions of keys costs as little as any other.
func (s *session) level(ctx context.Context, prefix string) (names []string) {
	start, end := prefix, transfer.After(prefix)
	for len(names) < maxCompletions {
		key, ok := s.first(ctx, start, end)
		if !ok {
			return names
		}
		start = key + "\x00"
		if slash := strings.IndexByte(key[len(prefix):], '/'); slash >= 0 {
			key = key[:len(prefix)+slash+1]
			start = transfer.After(key)
		}
		if printable(key) == key { // no shell could take the others as an argument
			names = append(names, key)
		}
	}
	return names
}

// first returns the first key of a range.
func (s *session) first(ctx context.Context, start, end string) (string, bool) {
	for kv, err := range s.List(ctx, client.Between(start, end), client.KeysOnly(), client.Limit(1)) {
		return keyOf(kv), err == nil
	}
	return "", false
}

func keyOf(kv *client.KV) string {
	if kv == nil {
		return ""
	}
	return kv.Key
}

// completeFormat completes --output.
func completeFormat(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return formats[formatTable:], cobra.ShellCompDirectiveNoFileComp
}
