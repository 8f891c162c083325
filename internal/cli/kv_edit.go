package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
)

func editCommand(sh *shell) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "edit KEY",
		Short: "Edit the value of a key in your editor",
		Long: `Open the value of a key in $VISUAL or $EDITOR (otherwise vi), and write it back if it was changed. A
key that does not exist is created. The lease of a key stays.

The value is written only if nobody else has changed the key since. Otherwise your text is kept in a
file, which is named, and the command exits with 5.`,
		Example: `  kvd kv edit config/nginx
  EDITOR='code --wait' kvd kv edit config/nginx`,
		Args:              between(1, 1),
		ValidArgsFunction: sh.completeKey,
	}
	cmd.RunE = sh.run(func(ctx context.Context, s *session, args []string) error { return s.edit(ctx, args[0]) })
	return cmd
}

// edit has the user edit a key. The file is removed only once its text is in the
// cluster or is what was there before: whatever fails after the editor has ended
// loses nothing.
func (s *session) edit(ctx context.Context, key string) error {
	before, err := s.current(ctx, key)
	if err != nil {
		return err
	}
	name, err := editorFile(key, before.Value)
	if err != nil {
		return fmt.Errorf("edit: %w", err)
	}
	if err := s.runEditor(ctx, name); err != nil {
		return fmt.Errorf("%w; your text is in %s", err, name)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return fmt.Errorf("edit: %w", err)
	}
	if bytes.Equal(text, before.Value) && before.ModRevision != 0 {
		s.note("nothing was changed")
		return discard(name)
	}
	if len(text) == 0 && before.ModRevision == 0 {
		s.note("nothing was written, and the key was not created")
		return discard(name)
	}
	written, err := s.writeBack(ctx, before, text)
	if err != nil {
		if errors.Is(err, client.ErrPreconditionFailed) {
			return failf(exitCondition, "somebody else has changed the key meanwhile; your text is in %s; compare it with the value now (kvd kv get %s), and store it with kvd kv put %s @%s --if-match REVISION",
				name, shellQuote(key), shellQuote(key), name)
		}
		said := explain(err)
		return &failure{ExitCode(said), said.Error() + "; your text is in " + name, err}
	}
	return errors.Join(discard(name), s.printWritten(key, written, false))
}

// current reads a key; its revision is 0 if it does not exist.
func (s *session) current(ctx context.Context, key string) (*client.KV, error) {
	ctx, cancel := s.limited(ctx)
	defer cancel()
	kv, err := s.Get(ctx, key)
	if errors.Is(err, client.ErrNotFound) {
		return &client.KV{Key: key}, nil
	}
	return kv, err
}

func (s *session) writeBack(ctx context.Context, before *client.KV, text []byte) (*client.Written, error) {
	put := map[string]any{"if_revision": before.ModRevision}
	byteField(put, "key", before.Key)
	byteField(put, "value", string(text))
	if before.Lease != 0 {
		put["keep_lease"] = true // a plain put would make the key permanent
	}
	doc, err := json.Marshal(map[string]any{"then": []any{map[string]any{"put": put}}})
	if err != nil {
		return nil, err
	}
	ctx, cancel := s.limited(ctx)
	defer cancel()
	answer, err := s.TxnJSON(ctx, doc)
	if err != nil {
		return nil, err
	}
	return writtenIn(answer)
}

// writtenIn returns the result of the only operation of a transaction.
func writtenIn(answer []byte) (*client.Written, error) {
	var result struct {
		Results []struct {
			CreateRevision uint64 `json:"create_revision"`
			ModRevision    uint64 `json:"mod_revision"`
			Version        uint64 `json:"version"`
		} `json:"results"`
	}
	if err := json.Unmarshal(answer, &result); err != nil || len(result.Results) != 1 {
		return nil, fmt.Errorf("read the answer %s: %w", answer, err)
	}
	r := result.Results[0]
	return &client.Written{Revision: r.ModRevision, CreateRevision: r.CreateRevision, ModRevision: r.ModRevision, Version: r.Version}, nil
}

// editorFile writes the value to a file that only the user can read. Its name ends
// like the key, for editors that choose colors by it.
func editorFile(key string, value []byte) (string, error) {
	safe := strings.Map(safeInFileName, key)
	f, err := os.CreateTemp("", "kvd-edit-*-"+safe[strings.LastIndexByte(safe, '/')+1:])
	if err != nil {
		return "", err
	}
	_, err = f.Write(value)
	return f.Name(), errors.Join(err, f.Close())
}

func safeInFileName(r rune) rune {
	if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/.-_", r) {
		return r
	}
	return '_'
}

func discard(name string) error { return os.Remove(name) }

// runEditor runs the user's editor, which may be a command with arguments.
func (s *session) runEditor(ctx context.Context, name string) error {
	editor := "vi"
	for _, v := range []string{"EDITOR", "VISUAL"} {
		if text := variable(s.env.Environ, v); text != "" {
			editor = text
		}
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", editor+` "$1"`, "sh", name)
	cmd.Env = s.environ()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.env.Stdin, s.env.Stdout, s.env.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("the editor %q failed: %w", editor, err)
	}
	return nil
}

// shellQuote returns a text as a shell reads it as one word.
func shellQuote(text string) string {
	if text != "" && strings.IndexFunc(text, func(r rune) bool { return safeInFileName(r) != r }) < 0 {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
