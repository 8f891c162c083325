// Package settings reads the settings of a serving node from flags, environment
// variables, a file, and defaults, in this order of precedence.
//
// One table has a row for each setting. Flags, variables, file keys, the help,
// the checks and the tables of docs/configuration.md follow from it, so that
// adding a setting is adding a row. Names of etcd's are answered beside it (see
// foreign.go and refused.go).
//
// Loading has three steps. Each origin is read into a Layer, which maps names to
// texts and knows where each text was found. Resolve translates every layer to
// the names of the table, takes each setting from the first layer that has it,
// and parses it. Then derive fills in what follows from other settings and
// reports contradictions.
//
// Invariants:
//
//	L1  All problems are reported at once, each with the setting and its origin;
//	    a problem of one origin does not hide those of another
//	    (TestProblemsNameTheirOrigin, TestWrongSettings).
//	L2  A name that kvd does not know is an error in every origin. A variable
//	    with a typo that is silently ignored costs an operator a day.
//	L3  A setting means the same from every origin: origins deliver texts, and one
//	    codec parses them (FuzzSettings).
//	L4  What a codec shows, it accepts again with the same result (FuzzFile), so
//	    that the output of kvd config show is a valid configuration.
//	L5  A secret appears in no output, error or log line
//	    (TestSecretsComeFromFilesAndStayThere).
//	L6  docs/configuration.md agrees with the table (TestConfigurationPage).
//
// Rejected: viper, which merges origins before anybody can tell where a value
// came from, folds case, and guesses types; struct tags with reflection, which
// cannot express --join's two forms or etcd's conversions and report mistakes in
// them at run time; and failing at the first problem, which makes configuring a
// node a dialog (ADR 6).
//
// The package reads no file but the configuration file and the files of secrets,
// listens nowhere, and resolves no host names: kvd config check must be able to
// judge the settings of another machine.
package settings
