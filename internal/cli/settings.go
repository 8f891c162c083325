package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
)

func settingsCommand(sh *shell) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "settings [NAME=VALUE...]",
		Short: "Show or change the limits of the cluster",
		Long: `Show the limits that are the same for the whole cluster, or change those that are named. A size
(max_value_bytes=2MiB) and a time (retention_millis=1h) may have a unit.

A lowered limit never makes what is stored unreadable. Settings of single nodes are flags of kvd.`,
		Example: `  kvd settings
  kvd settings max_value_bytes=2MiB retention_millis=1h
  kvd settings -o json`,
		ValidArgsFunction: sh.completeSetting,
	}
	cmd.RunE = sh.run(func(ctx context.Context, s *session, args []string) error {
		change, err := parseSettings(args)
		if err != nil {
			return err
		}
		ctx, cancel := s.limited(ctx)
		defer cancel()
		var now *client.Settings
		if len(args) == 0 {
			now, err = s.Settings(ctx)
		} else {
			now, err = s.ChangeSettings(ctx, *change)
		}
		if err != nil {
			return err
		}
		return s.printSettings(now)
	})
	return cmd
}

// settingNames returns the names of the settings in the order of the document.
func settingNames() (names []string) {
	for _, v := range settingValues(&client.Settings{}) {
		names = append(names, v.name)
	}
	return names
}

// settingValue is a setting with its value as JSON has it.
type settingValue struct {
	name string
	text string
}

// settingValues returns the fields of the document, in its order.
func settingValues(set *client.Settings) (out []settingValue) {
	text, err := json.Marshal(set)
	if err != nil {
		panic("cli: settings are numbers: " + err.Error())
	}
	for field := range strings.SplitSeq(strings.Trim(string(text), "{}"), ",") {
		name, value, _ := strings.Cut(field, ":")
		out = append(out, settingValue{strings.Trim(name, `"`), value})
	}
	return out
}

// parseSettings reads NAME=VALUE, and reports all problems at once.
func parseSettings(args []string) (*client.SettingsChange, error) {
	names := settingNames()
	known := strings.Join(names, ", ")
	doc := make(map[string]json.Number)
	var wrong []string
	for _, arg := range args {
		name, text, ok := strings.Cut(arg, "=")
		n, why := parseAmount(name, text)
		switch {
		case !ok:
			wrong = append(wrong, fmt.Sprintf("%q is not NAME=VALUE; the names are %s", arg, known))
		case !strings.Contains(" "+strings.Join(names, " ")+" ", " "+name+" "):
			wrong = append(wrong, fmt.Sprintf("%q is not a setting; the names are %s", name, known))
		case why != "":
			wrong = append(wrong, fmt.Sprintf("%s: %q is not %s", name, text, why))
		case doc[name] != "":
			wrong = append(wrong, name+" is given twice")
		default:
			doc[name] = json.Number(strconv.FormatInt(n, 10))
		}
	}
	if len(wrong) > 0 {
		return nil, usagef("%s", strings.Join(wrong, "\n"))
	}
	change := new(client.SettingsChange)
	text, err := json.Marshal(doc)
	if err == nil {
		err = json.Unmarshal(text, change)
	}
	return change, err
}

// parseAmount reads the value of a setting, whose name ends in its unit, or returns
// what it should have been.
func parseAmount(name, text string) (n int64, why string) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err == nil {
		return n, ""
	}
	switch {
	case strings.HasSuffix(name, "_bytes"):
		size, err := humanize.ParseBytes(text)
		if err != nil || size > math.MaxInt64 {
			return 0, "a size (for example, 2MiB)"
		}
		return int64(size), ""
	case strings.HasSuffix(name, "_millis"):
		d, err := time.ParseDuration(text)
		if err != nil {
			return 0, "a duration (for example, 10m) or a number of milliseconds"
		}
		return d.Milliseconds(), ""
	}
	return 0, "a number"
}

func (s *session) printSettings(set *client.Settings) error {
	switch s.formatOr(formatTable) {
	case formatJSON:
		return s.printJSON(set)
	case formatValue:
		for _, v := range settingValues(set) {
			if err := s.println(v.name + "=" + v.text); err != nil {
				return err
			}
		}
		return nil
	}
	var rows [][]string
	for _, v := range settingValues(set) {
		rows = append(rows, []string{v.name, v.text, readable(v)})
	}
	return s.printTable(nil, rows)
}

// readable returns a setting in the unit that a person would use.
func readable(v settingValue) string {
	n, err := strconv.ParseUint(v.text, 10, 63)
	switch {
	case err != nil:
	case strings.HasSuffix(v.name, "_bytes"):
		return humanize.IBytes(n)
	case strings.HasSuffix(v.name, "_millis"):
		return (time.Duration(n) * time.Millisecond).String()
	}
	return ""
}

// completeSetting completes the name of a setting.
func (sh *shell) completeSetting(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var out []string
	for _, name := range settingNames() {
		out = append(out, name+"=")
	}
	return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}
