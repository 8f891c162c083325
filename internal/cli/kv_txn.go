package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/internal/transfer"
)

func txnCommand(sh *shell) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "txn [@FILE|-]",
		Short: "Run a transaction: comparisons, and changes that depend on them",
		Long: `Run a transaction that is read from a file or standard input: if all comparisons hold, the
operations of then are carried out, otherwise those of else. All changes have one revision, and if
one operation cannot be carried out, none is.

A transaction is the JSON of POST /v1/txn, or text. In the text, a word with spaces is written in
quotes, as a string of Go or JSON, and # begins a comment:

  if
    color revision = 7          # or create_revision, version, lease; also != < >
    color value = "dark red"
    lock absent                 # or exists
  then
    put color blue ttl=30s      # or lease=ID
    append log "blue\n"
    incr generation 1
    delete old                  # delete prefix old/ deletes many keys
  else
    get color
    list fruit/

Exits with 0 if the comparisons held, and with 5 if they did not; then else was carried out.`,
		Example: `  kvd kv txn < move.txt
  kvd kv txn @move.txt -o json
  printf 'if\n lock absent\nthen\n put lock n1 ttl=30s\n' | kvd kv txn`,
		Args: between(0, 1),
	}
	cmd.RunE = sh.run(func(ctx context.Context, s *session, args []string) error {
		if len(args) == 1 && args[0] != "-" && !strings.HasPrefix(args[0], "@") {
			return usagef("%q is not a file to read; write @%s, or leave it out to read standard input", args[0], args[0])
		}
		text, err := s.value(args)
		if err != nil {
			return err
		}
		if trimmed := bytes.TrimSpace(text); len(trimmed) == 0 {
			return usagef("the transaction is empty; see %s --help", cmd.CommandPath())
		} else if trimmed[0] != '{' {
			if text, err = parseTxn(string(text)); err != nil {
				return err
			}
		}
		return s.runTxn(ctx, text)
	})
	return cmd
}

// runTxn sends the transaction and prints what it did.
func (s *session) runTxn(ctx context.Context, doc []byte) error {
	ctx, cancel := s.limited(ctx)
	defer cancel()
	answer, err := s.TxnJSON(ctx, doc)
	if err != nil {
		return err
	}
	var result txnResult
	if err := json.Unmarshal(answer, &result); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	switch s.formatOr(formatTable) {
	case formatJSON:
		err = s.println(string(answer))
	case formatValue:
		err = s.printResultValues(result.Results)
	default:
		err = s.printTxn(&result)
	}
	if err == nil && !result.Succeeded {
		return failf(exitCondition, "a comparison did not hold")
	}
	return err
}

// txnResult is the answer to a transaction.
type txnResult struct {
	Succeeded bool       `json:"succeeded"`
	Revision  uint64     `json:"revision"`
	Results   []opResult `json:"results"`
}

// opResult is the result of any operation. Which fields are there depends on it.
type opResult struct {
	transfer.PairJSON
	Revision  *uint64             `json:"revision"`
	Deleted   *uint64             `json:"deleted"`
	Count     *uint64             `json:"count"`
	KVs       []transfer.PairJSON `json:"kvs"`
	Succeeded *bool               `json:"succeeded"`
	Results   []opResult          `json:"results"`
}

// printResultValues prints each value that was read.
func (s *session) printResultValues(results []opResult) error {
	for i := range results {
		r := &results[i]
		if r.HasValue() {
			if err := s.println(r.ValueText()); err != nil {
				return err
			}
		}
		for j := range r.KVs {
			if err := s.println(r.KVs[j].ValueText()); err != nil {
				return err
			}
		}
		if err := s.printResultValues(r.Results); err != nil {
			return err
		}
	}
	return nil
}

// printTxn prints the result for a person.
func (s *session) printTxn(t *txnResult) error {
	head := "the comparisons held; revision %d"
	if !t.Succeeded {
		head = "a comparison did not hold, so that else was carried out; revision %d"
	}
	if err := s.println(fmt.Sprintf(head, t.Revision)); err != nil || len(t.Results) == 0 {
		return err
	}
	return s.printTable([]string{"#", "KEY", "VALUE", "REVISION", "VERSION", "RESULT"}, resultRows("", t.Results))
}

// resultRows describes the results of operations, which are numbered like then[0].
func resultRows(path string, results []opResult) (rows [][]string) {
	for i := range results {
		r := &results[i]
		n := fmt.Sprint(path, i+1)
		switch {
		case r.Succeeded != nil:
			rows = append(rows, []string{n, "", "", "", "", map[bool]string{true: "then", false: "else"}[*r.Succeeded]})
			rows = append(rows, resultRows(n+".", r.Results)...)
		case r.Deleted != nil:
			rows = append(rows, []string{n, "", "", "", "", fmt.Sprintf("deleted %d", *r.Deleted)})
		case r.Count != nil:
			rows = append(rows, []string{n, "", "", "", "", fmt.Sprintf("%d key%s", *r.Count, plural(int(*r.Count)))})
			for j := range r.KVs {
				rows = append(rows, pairRow(n, &r.KVs[j], ""))
			}
		case r.ModRevision == 0:
			rows = append(rows, []string{n, "", "", "", "", "no such key"})
		case r.Revision != nil:
			rows = append(rows, pairRow(n, &r.PairJSON, "written"))
		default:
			rows = append(rows, pairRow(n, &r.PairJSON, ""))
		}
	}
	return rows
}

func pairRow(n string, p *transfer.PairJSON, outcome string) []string {
	value := ""
	if p.HasValue() {
		value = printable(p.ValueText())
	}
	return []string{n, printable(p.KeyText()), value, fmt.Sprint(p.ModRevision), fmt.Sprint(p.Version), outcome}
}
