from ddk import main

main()
