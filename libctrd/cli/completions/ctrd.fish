# Completion of ctrd for fish. ctrd itself is asked: it gets the words up to the cursor, the last of them begun, and says a
# kind, a value and a help for each that it could be.

function __ctrd_complete
    set -l words (commandline -opc) (commandline -ct)
    for line in (env _CTRD_COMPLETE=1 $words[1] $words[2..-1] 2>/dev/null)
        set -l told (string split \t -- $line)
        switch $told[1]
            case file
                __fish_complete_path $told[2]
            case dir
                __fish_complete_directories $told[2]
            case '*'
                echo $told[2]\t$told[3]
        end
    end
end

complete --command ctrd --no-files --arguments '(__ctrd_complete)'
